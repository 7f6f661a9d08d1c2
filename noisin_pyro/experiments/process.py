"""The parent's side of a worker process: its start, its progress, and why it failed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import replacing
from noisin_pyro.experiments.store import Run
from noisin_pyro.experiments.worker import BUSY, PROGRESS

__all__ = ["GRACE", "Worker"]

GRACE = 60.0  # seconds that a worker has to save after SIGTERM


class Worker:
    """A process that carries out a run.

    The constructor writes the job file, while the caller has the run's lock. The process takes the
    lock itself, so :meth:`start` is called after the caller has released it.

    Args:
        run: the run.
        folder: an existing folder for its job, checkpoints, progress and log.
        jobs: number of workers that share the cores.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, run: Run, folder: Path, jobs: int) -> None:
        self.run, self.folder, self.log = run, folder, folder / "log.txt"
        (folder / PROGRESS).unlink(missing_ok=True)
        with replacing(folder / "job.json") as temporary:
            temporary.write_text(json.dumps(_job(run)), encoding="utf-8")
        self._cores = max(1, (os.cpu_count() or 1) // jobs)
        self._output = self.log.open("ab")
        self._log_start = self._output.tell()

    def start(self) -> Worker:
        """Starts the process; returns itself."""
        job = str(self.folder / "job.json")
        with self._output:
            self.process = subprocess.Popen(
                [sys.executable, *_safe_path(), "-m", "noisin_pyro.experiments.worker", job],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env={"OMP_NUM_THREADS": str(self._cores), **os.environ},
                start_new_session=True,  # Ctrl-C reaches it by `interrupt`, once
            )
        return self

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether it ended without a finished record, and no other worker has the run."""
        return self.process.returncode != BUSY and not self.run.finished

    @property
    def progress(self) -> dict[str, Any]:
        """The progress that it wrote last; empty if there is none, or the file is damaged."""
        try:
            progress = json.loads((self.folder / PROGRESS).read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return progress if _is_progress(progress) else {}

    @property
    def stage(self) -> str:
        """Its progress in words."""
        progress = self.progress
        if not progress:
            return "starting"
        if "averaging" in progress:
            return f"averaging {progress['averaging']} samples"
        share = 100 * progress["step"] // max(progress["steps"], 1)
        return f"epoch {progress['epoch']}, {share} %"

    @property
    def epochs(self) -> float:
        """The number of epochs done, with a fraction; infinite once training is over."""
        progress = self.progress
        if "averaging" in progress:
            return math.inf
        if not progress:
            return 0.0
        share = progress["step"] / max(progress["steps"], 1)
        return float(max(progress["epoch"] - 1, 0) + share)

    def interrupt(self) -> None:
        """Asks it to save a checkpoint and to end."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)

    def join(self) -> None:
        """Waits up to ``GRACE`` seconds for its end, then kills it."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The last line of its log, such as the error of a traceback, and how it ended."""
        try:
            text = self.log.read_bytes()[self._log_start :].decode(errors="replace").strip()
        except FileNotFoundError:  # another reproduction, with other results, has removed it
            text = ""
        code = self.process.returncode
        ending = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        if not text:
            return f"{ending}, {self.log}"
        return f"{text.splitlines()[-1].strip()} ({ending}, {self.log})"


def _safe_path() -> list[str]:
    """Python's option -P (from 3.11 on), which keeps the working directory off the import path.

    It is left out if this process itself imports from there, as after ``python -m``.
    """
    here = {"", os.getcwd()} & set(sys.path)
    return [] if here or sys.version_info < (3, 11) else ["-P"]


def _is_progress(value: Any) -> bool:
    """Whether a value has the form that :func:`noisin_pyro.experiments.job.run` reports."""
    if not isinstance(value, dict) or value.keys() not in (
        {"averaging"},
        {"epoch", "step", "steps"},
    ):
        return False
    return all(type(count) is int and 0 <= count < 2**63 for count in value.values())


def _job(run: Run) -> dict[str, Any]:
    about = {
        "recipe": run.recipe.records,
        "method": run.recipe.method,
        "point": run.point,
        "seed": run.seed,
    }
    return {
        "config": run.config.to_dict("out", "resume"),
        "record": str(run.path.resolve()),
        "samples": run.recipe.samples,
        "averaging": run.recipe.averaging,
        "about": about,
    }
