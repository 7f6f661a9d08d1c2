"""Runs what has no finished record, several trainings at once, each in a process of its own."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from noisin_pyro.experiments.preflight import refuse_early
from noisin_pyro.experiments.progress import Tally, count
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import Run, due

__all__ = ["Failure", "run_all"]

POLL = 0.2  # seconds between two looks at the workers
RETRY = 2.0  # seconds until a run that another process has is tried again
GRACE = 60.0  # seconds that workers have to save after Ctrl-C


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record, and the last line it left."""

    run: Run
    reason: str


def run_all(
    rows: Sequence[Recipe],
    options: Options,
    *,
    results: Path = Path("results/reproduce"),
    work: Path = Path("runs/reproduce"),
    jobs: int = 1,
    title: str = "",
) -> list[Failure]:
    """Trains until every run of the rows has a finished record.

    The entries of a row's grid come first, then the other seeds of the entry with the lowest
    validation perplexity. What was cut off resumes from its checkpoint. What another process has in
    hand is put aside, and tried again until it has its record.

    Args:
        rows: what to run.
        options: how.
        results: where records go.
        work: where checkpoints and logs go until a run has its record.
        jobs: K, the trainings at a time; each is given its share of the cores.
        title: what the progress bar says first.

    Returns:
        The runs that failed; the others went on.

    Raises:
        ValueError: if ``jobs`` is below 1, a recipe does not fit, or no run could succeed.
        KeyboardInterrupt: after Ctrl-C, when all workers have saved a checkpoint.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    refuse_early(rows, options, results, work)
    failures: list[Failure] = []
    active: dict[Path, _Worker] = {}
    tally = count(rows, options, results)
    bar = tqdm(
        desc=title, total=tally.total, initial=tally.done,
        bar_format="{desc} {n}/{total} runs |{bar:12}| {elapsed}{postfix}",
        dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 60.0,
    )  # fmt: skip
    try:
        while True:
            failed = {failure.run.path for failure in failures}
            ready = [run for run in due(rows, options, results) if run.path not in failed]
            waiting = [run for run in ready if run.path not in active]
            aside = 0
            for run in waiting:
                if len(active) == jobs:
                    break
                lock = _lock(run, work / run.place)
                if lock:
                    active[run.path] = _Worker(run, work / run.place, lock, jobs)
                else:
                    aside += 1
            tally = count(rows, options, results)
            _show(bar, tally, list(active.values()), aside, jobs)
            if not (active or waiting):
                return failures
            until = time.monotonic() + RETRY if aside else math.inf
            time.sleep(POLL)
            while time.monotonic() < until and all(w.running for w in active.values()):
                time.sleep(POLL)
                _show(bar, tally, list(active.values()), aside, jobs)
            for path, worker in list(active.items()):
                if not worker.running:
                    del active[path]
                    worker.join()
                    if worker.run.finished:
                        shutil.rmtree(worker.folder, ignore_errors=True)
                    else:
                        failures.append(Failure(worker.run, worker.last_words()))
                    worker.lock.close()
    finally:
        for worker in active.values():
            worker.interrupt()
        for worker in active.values():
            worker.join()
            worker.lock.close()
        bar.close()


def _lock(run: Run, folder: Path) -> IO[str] | None:
    """The lock on a run's folder; None where another process has it, or has just done the run.

    A worker inherits it, so that what a killed reproduction left running keeps it to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = (folder / "lock").open("w")
    except FileNotFoundError:  # whoever has done the run removed the folder
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    if run.finished:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()
        return None
    return lock


@dataclass
class _Worker:
    """A process that carries out a run, and what it last said."""

    run: Run
    folder: Path
    lock: IO[str]
    jobs: int
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe, order = self.run.recipe, self.folder / "order.json"
        about = {
            "recipe": recipe.records,
            "method": recipe.method,
            "point": self.run.point,
            "seed": self.run.seed,
        }
        config = {k: v for k, v in asdict(self.run.config).items() if k not in ("out", "resume")}
        target = self.run.path.resolve()
        text = {
            "config": config, "record": str(target), "samples": recipe.samples, "about": about
        }  # fmt: skip
        order.write_text(json.dumps(text), encoding="utf-8")
        cores = max(1, (os.cpu_count() or 1) // self.jobs)
        self.log = self.folder / "log.txt"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "noisin_pyro.experiments.worker", str(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                pass_fds=[self.lock.fileno()],
                env={"OMP_NUM_THREADS": str(cores), **os.environ},
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )
        assert self.process.stdout is not None
        self.listener = threading.Thread(
            target=self._listen, args=(self.process.stdout,), daemon=True
        )
        self.listener.start()

    def _listen(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                try:
                    self.report = json.loads(line)
                except ValueError:  # something else that a library printed
                    continue

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stage(self) -> str:
        """How far it is."""
        said = self.report
        if "averaging" in said:
            return f"averaging {said['averaging']} samples"
        if not said:
            return "starting"
        share = 100 * said["step"] // max(said["steps"], 1)
        return f"epoch {said['epoch']}, {share} %"

    @property
    def epochs(self) -> float:
        """How many it has behind it; infinite once it only measures."""
        said = self.report
        if "averaging" in said:
            return math.inf
        return said["epoch"] - 1 + said["step"] / max(said["steps"], 1) if said else 0.0

    def interrupt(self) -> None:
        if self.running:
            self.process.send_signal(signal.SIGINT)

    def join(self) -> None:
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join()

    def last_words(self) -> str:
        """The last line of its log, which for a Python error names it."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        code = self.process.returncode
        ending = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{said[-1]} ({ending}, {self.log})" if said else f"{ending}, {self.log}"


def _show(bar: Any, tally: Tally, workers: list[_Worker], aside: int, jobs: int) -> None:
    """Brings the bar up to date: runs done, when all will be, and where each worker is."""
    bar.total, bar.n = tally.total, tally.done
    stages = [f"{worker.run.name}: {worker.stage}" for worker in workers]
    text = "; ".join([*stages, f"{aside} in another process"] if aside else stages)
    seconds = tally.seconds_left([worker.epochs for worker in workers], jobs)
    if seconds is not None:
        text = f"about {_duration(seconds)} left; {text}"
    if text != bar.postfix:
        bar.set_postfix_str(text, refresh=False)
        bar.update(0)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
