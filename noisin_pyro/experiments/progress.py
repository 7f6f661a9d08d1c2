"""How many runs of a reproduction are done, and how long the others will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import planned

__all__ = ["Tally", "count"]


@dataclass(frozen=True)
class Tally:
    """Runs by their records.

    Args:
        done: those with a finished record.
        total: all, with the later seeds of a row whose choice is still to be made.
        seconds: what an average finished run took; 0 before there is one.
        epochs: how many it had.
    """

    done: int
    total: int
    seconds: float = 0.0
    epochs: float = 0.0

    def seconds_left(self, running: Iterable[float], jobs: int) -> float | None:
        """Seconds until all are done, None before there is a finished run to estimate from.

        Args:
            running: the epochs that each running training has done.
            jobs: trainings at a time.

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
    """Counts what is planned and what has a finished record."""
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
