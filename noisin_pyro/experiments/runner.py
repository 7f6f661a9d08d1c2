"""Runs what has no finished record, several trainings at once, each in a process of its own."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from noisin_pyro.experiments.preflight import refuse_early
from noisin_pyro.experiments.process import Worker
from noisin_pyro.experiments.progress import Tally, count
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import Run, due
from noisin_pyro.experiments.worker import LOCK

__all__ = ["Failure", "run_all"]

POLL = 0.2  # seconds between two looks at the workers
RETRY = 2.0  # seconds until a run that another reproduction has in hand is tried again


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record, or a row whose records cannot be read, and why."""

    run: Run | Recipe
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
    validation perplexity. What was cut off resumes from its checkpoint. A run that a worker of
    another reproduction has in hand is tried again until it has its record.

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
    ended: set[Path] = set()
    active: dict[Path, Worker] = {}
    tally = count(rows, options, results)
    bar = tqdm(
        desc=title, total=tally.total, initial=tally.done,
        bar_format="{desc} {n}/{total} runs |{bar:12}| {elapsed}{postfix}",
        dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 60.0,
    )  # fmt: skip
    try:
        while True:
            done = ended | set(active)
            waiting = [run for run in due(rows, options, results) if run.path not in done]
            elsewhere = _start(waiting, active, work, jobs)
            tally = count(rows, options, results)
            _show(bar, tally, list(active.values()), elsewhere, jobs)
            if not (active or waiting):
                return failures
            until = time.monotonic() + (RETRY if elsewhere else math.inf)
            while time.monotonic() < until and all(w.running for w in active.values()):
                time.sleep(POLL)
                _show(bar, tally, list(active.values()), elsewhere, jobs)
            for worker in _collect(active):
                ended.add(worker.run.path)
                failures.append(Failure(worker.run, worker.last_words()))
    finally:
        for worker in active.values():
            worker.interrupt()
        for worker in active.values():
            worker.join()
        bar.close()


def _start(waiting: Sequence[Run], active: dict[Path, Worker], work: Path, jobs: int) -> int:
    """Starts workers while there is room; returns how many runs another reproduction has."""
    elsewhere = 0
    for run in waiting:
        if len(active) == jobs:
            break
        if _is_free(run, work / run.place):
            active[run.path] = Worker(run, work / run.place, jobs)
        else:
            elsewhere += 1
    return elsewhere


def _is_free(run: Run, folder: Path) -> bool:
    """Whether no worker has the run in hand or has just finished it.

    The worker takes the lock again. Should that of another reproduction be faster, it ends at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not run.finished:
                return True
            shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, FileNotFoundError):  # a worker has it, or removed its folder just now
        pass
    return False


def _collect(active: dict[Path, Worker]) -> list[Worker]:
    """Takes the workers that have ended from the active ones; returns those that failed."""
    ended = [path for path, worker in active.items() if not worker.running]
    return [worker for worker in map(active.pop, ended) if worker.failed]


def _show(bar: Any, tally: Tally, workers: list[Worker], elsewhere: int, jobs: int) -> None:
    """Brings the bar up to date: runs done, the time left, and how far each worker is."""
    bar.total, bar.n = tally.total, tally.done
    parts = [f"{worker.run.name}: {worker.stage}" for worker in workers]
    text = "; ".join([*parts, f"{elsewhere} in another process"] if elsewhere else parts)
    seconds = tally.seconds_left([worker.epochs for worker in workers], jobs)
    if seconds is not None:
        text = f"about {_duration(seconds)} left; {text}"
    if text != bar.postfix:
        bar.set_postfix_str(text, refresh=False)
        bar.update(0)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
