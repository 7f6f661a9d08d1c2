"""What the records say of a row: the chosen hyper-parameter, and its figures over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import best_point, run_of

__all__ = ["Figure", "Row", "summarise_row"]


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation over ``count`` runs."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Figure | None:
        """Of nothing, None; the deviation of one run is NaN.

        Example:
            >>> str(Figure.of([140.0, 141.0, 142.0])), str(Figure.of([140.0]))
            ('141.0 ± 1.0', '140.0')
        """
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    def level_with(self, other: Figure) -> bool:
        """Whether the difference is within twice its standard error; never so after one run each.

        Example:
            >>> Figure(48.0, 0.6, 3).level_with(Figure(48.9, 0.6, 3))
            True
            >>> Figure(48.0, 0.6, 3).level_with(Figure(49.1, 0.6, 3))
            False
        """
        error = math.sqrt(self.deviation**2 / self.count + other.deviation**2 / other.count)
        return abs(self.mean - other.mean) <= 2 * error

    def __str__(self) -> str:
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Row:
    """A row's records.

    Args:
        recipe: what was run.
        grid: by entry, the record of its first seed; None where there is none.
        point: the entry chosen on validation, None while the grid is not finished.
        seeds: the record of each wanted seed of that entry; None where there is none.
    """

    recipe: Recipe
    grid: dict[str, dict[str, Any] | None]
    point: str | None
    seeds: list[dict[str, Any] | None]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those of the seeds that came to figures."""
        return [held for held in self.seeds if held and held["finished"] and held["final"]]

    @property
    def diverged(self) -> int:
        """How many of the seeds diverged."""
        return sum(bool(held and held["diverged"]) for held in self.seeds)

    @property
    def missing(self) -> int:
        """How many of the seeds have not been run to their end."""
        return len(self.seeds) - len(self.records) - self.diverged

    @property
    def hopeless(self) -> bool:
        """Whether every entry of the grid diverged."""
        return all(held and held["diverged"] for held in self.grid.values())

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to run."""
        return self.hopeless or (self.point is not None and not self.missing)

    @property
    def shortfall(self) -> str:
        """Which of the seeds are not in :meth:`figure`; empty if all are."""
        parts = [f"{len(self.records)} of {len(self.seeds)} seeds"] if self.missing else []
        parts += [f"{self.diverged} of {len(self.seeds)} diverged"] if self.diverged else []
        return ", ".join(parts)

    def figure(self, split: str, samples: int = 0) -> Figure | None:
        """Perplexity on the mean path, or averaged over a number of samples."""
        values = [held[split] for held in map(_final(samples), self.records) if held]
        return Figure.of([value for value in values if value is not None])

    @property
    def minutes(self) -> Figure | None:
        """Of training a run, over all its epochs, however often it was cut off."""
        return Figure.of([record["timing"]["seconds"] / 60 for record in self.records])


def _final(samples: int) -> Any:
    def held(record: dict[str, Any]) -> dict[str, Any] | None:
        final = record["final"]
        if not samples:
            return final["mean_path"]  # type: ignore[no-any-return]
        return next((part for part in final["averaged"] if part["samples"] == samples), None)

    return held


def summarise_row(recipe: Recipe, options: Options, results: Path) -> Row:
    """Reads a row's records.

    Raises:
        ValueError: if one is no record.
    """
    grid = {
        point: run_of(recipe, point, 1, options, results).record()
        for point in recipe.points(options)
    }
    point = best_point(recipe, options, results)
    if point is None:
        return Row(recipe, grid, None, [])
    others = [run_of(recipe, point, seed, options, results) for seed in range(2, options.seeds + 1)]
    return Row(recipe, grid, point, [grid[point], *(run.record() for run in others)])
