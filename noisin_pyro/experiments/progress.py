"""How many runs of a reproduction are done, and how long the others will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from noisin_pyro.experiments.process import Worker
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import planned
from noisin_pyro.training.progress import PlainLines, is_terminal

__all__ = ["Display", "Tally", "count"]


@dataclass(frozen=True)
class Tally:
    """How many runs are finished and planned, and what a finished one took.

    Args:
        done: number of runs with a finished record.
        total: number of all runs, with the further seeds of rows whose choice is still to be made.
        seconds: mean training time of a finished run; 0 before there is one.
        epochs: mean number of epochs of a finished run.
    """

    done: int
    total: int
    seconds: float = 0.0
    epochs: float = 0.0

    def seconds_left(self, running: Iterable[float], jobs: int) -> float | None:
        """Seconds until all are done, None before there is a finished run to estimate from.

        Args:
            running: the number of epochs done by each running training.
            jobs: number of trainings at a time.

        Example:
            >>> Tally(done=7, total=10, seconds=600.0, epochs=20.0).seconds_left([10.0, 10.0], 2)
            600.0
        """
        left = self.total - self.done
        if not (left and self.epochs):
            return None
        shares = sum(min(epochs / self.epochs, 1.0) for epochs in running)
        return self.seconds * (left - shares) / min(jobs, left)


def count(rows: Sequence[Recipe], options: Options, results: Path) -> Tally:
    """Counts the planned runs, and those of them with a finished record."""
    known: dict[Path, dict[str, Any] | None] = {}
    later = 0
    for recipe in rows:
        records = {run.path: run.record() for run in planned(recipe, options, results)}
        known.update(records)
        if not all(record and record["finished"] for record in records.values()):
            later += len(recipe.points(options)) + options.seeds - 1 - len(records)
    done = [record for record in known.values() if record and record["finished"]]
    timed = [record for record in done if record["history"]]  # one may diverge in its first epoch
    if not timed:
        return Tally(len(done), len(known) + later)
    seconds = mean(record["timing"]["seconds"] for record in timed)
    epochs = mean(len(record["history"]) for record in timed)
    return Tally(len(done), len(known) + later, seconds, epochs)


class Display:
    """The progress of a reproduction on stderr: a bar, or plain lines in a log file.

    Args:
        title: the text that the line begins with.
        jobs: number of trainings at a time.
        quiet: display nothing.
    """

    def __init__(self, title: str, jobs: int, quiet: bool) -> None:
        self._title, self._jobs, self._quiet = title, jobs, quiet
        self._bar: Any = None
        self._lines, self._done = PlainLines(), -1

    def __call__(self, tally: Tally, workers: Sequence[Worker], elsewhere: int) -> None:
        """Shows the finished runs, the time left, and the progress of each worker.

        Args:
            tally: the finished and planned runs.
            workers: the running workers.
            elsewhere: number of runs that another reproduction is training.
        """
        parts = [f"{worker.run.name}: {worker.stage}" for worker in workers]
        text = "; ".join([*parts, f"{elsewhere} in another process"] if elsewhere else parts)
        seconds = tally.seconds_left([worker.epochs for worker in workers], self._jobs)
        if seconds is not None:
            text = f"about {_duration(seconds)} left; {text}"
        if self._quiet:
            return
        if not is_terminal():
            line = f"{self._title} {tally.done}/{tally.total} runs, {text}".rstrip(", ")
            self._lines(line, at_once=tally.done != self._done)
            self._done = tally.done
            return
        if self._bar is None:
            self._bar = tqdm(
                desc=self._title,
                bar_format="{desc} {n}/{total} runs |{bar:12}| {elapsed}{postfix}",
                total=tally.total,
                dynamic_ncols=True,
                mininterval=0.5,
            )
        self._bar.total, self._bar.n = tally.total, tally.done
        if text != self._bar.postfix:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
