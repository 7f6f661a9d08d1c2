"""A row of a table from its records: the chosen hyper-parameter, and its results over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from noisin_pyro.experiments.averaging import Variant
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import best_point, run_of

__all__ = ["Gain", "MeanStd", "Row", "summarise_row"]


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over ``count`` runs.

    The deviation of one run is NaN, as is that of values of which one is infinite.
    """

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> MeanStd | None:
        """From a list of values; None if it is empty.

        Example:
            >>> str(MeanStd.of([140.0, 141.0, 142.0])), str(MeanStd.of([140.0]))
            ('141.0 ± 1.0', '140.0')
            >>> str(MeanStd.of([140.0, math.inf]))
            'inf'
        """
        if not values:
            return None
        spread = len(values) > 1 and all(map(math.isfinite, values))
        return cls(mean(values), stdev(values) if spread else math.nan, len(values))

    def level_with(self, other: MeanStd) -> bool:
        """Whether the difference is within twice its standard error; False if either is one run.

        Example:
            >>> MeanStd(48.0, 0.6, 3).level_with(MeanStd(48.9, 0.6, 3))
            True
            >>> MeanStd(48.0, 0.6, 3).level_with(MeanStd(49.1, 0.6, 3))
            False
        """
        error = math.sqrt(self.std**2 / self.count + other.std**2 / other.count)
        return abs(self.mean - other.mean) <= 2 * error

    def __str__(self) -> str:
        spread = "" if math.isnan(self.std) else f" ± {self.std:.1f}"
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Gain:
    """The gain of an average over S noisy RNNs over the mean path, by seed.

    Args:
        perplexity: test perplexity of the average.
        nats: the gain of each seed, in nats per token.
        errors: the standard error of each gain, paired over the tokens.
    """

    perplexity: MeanStd
    nats: list[float]
    errors: list[float]

    @property
    def mean(self) -> float:
        """The mean gain over seeds."""
        return mean(self.nats)

    @property
    def clear(self) -> bool:
        """Whether each seed gains more than twice its standard error.

        Example:
            >>> Gain(MeanStd(50.0, 0.5, 2), [0.02, 0.03], [0.009, 0.009]).clear
            True
            >>> Gain(MeanStd(50.0, 0.5, 2), [0.02, 0.01], [0.009, 0.009]).clear
            False
        """
        return all(gain > 2 * error for gain, error in zip(self.nats, self.errors))


@dataclass(frozen=True)
class Row:
    """A row's records.

    Args:
        recipe: the recipe of the row.
        grid: by entry of the grid, the record of its first seed; None if it has none.
        point: the entry chosen on validation; None while the grid is not finished.
        seeds: the records of the chosen entry by seed; None for a seed without one.
    """

    recipe: Recipe
    grid: dict[str, dict[str, Any] | None]
    point: str | None
    seeds: list[dict[str, Any] | None]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of the seeds that finished and did not diverge."""
        return [r for r in self.seeds if r and r["finished"] and r["final"]]

    @property
    def diverged(self) -> int:
        """How many of the seeds diverged."""
        return sum(bool(record and record["diverged"]) for record in self.seeds)

    @property
    def missing(self) -> int:
        """How many of the seeds have not been run to their end."""
        return len(self.seeds) - len(self.records) - self.diverged

    @property
    def hopeless(self) -> bool:
        """Whether every entry of the grid diverged."""
        return all(record and record["diverged"] for record in self.grid.values())

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to run."""
        return self.hopeless or (self.point is not None and not self.missing)

    @property
    def shortfall(self) -> str:
        """How many seeds are missing or diverged, in words; empty if none."""
        parts = [f"{len(self.records)} of {len(self.seeds)} seeds"] if self.missing else []
        parts += [f"{self.diverged} of {len(self.seeds)} diverged"] if self.diverged else []
        return ", ".join(parts)

    def perplexity(self, split: str, samples: int = 0) -> MeanStd | None:
        """Perplexity on the mean path, or averaged over a number of samples."""
        results = [
            result
            for record in self.records
            for result in [record["final"]["mean_path"], *record["final"]["averaged"]]
            if result["samples"] == samples
        ]
        return MeanStd.of([result[split] for result in results])

    def gains(self, variant: Variant) -> dict[int, Gain]:
        """The gain of a variant of averaging, by number of noisy RNNs; empty without records."""
        readout, antithetic = variant
        entries = [
            entry
            for record in self.records
            for entry in record["final"]["averaging"]
            if (entry["readout"], entry["antithetic"]) == (readout, antithetic)
        ]
        gains = {}
        for count in sorted({entry["samples"] for entry in entries}):
            of_count = [entry for entry in entries if entry["samples"] == count]
            perplexity = MeanStd.of([entry["test"] for entry in of_count])
            assert perplexity is not None
            nats, errors = ([entry[name] for entry in of_count] for name in ("gain", "error"))
            gains[count] = Gain(perplexity, nats, errors)
        return gains

    @property
    def minutes(self) -> MeanStd | None:
        """Minutes of training, over all epochs of a run, resumed or not."""
        return MeanStd.of([record["timing"]["seconds"] / 60 for record in self.records])

    @property
    def seconds_per_epoch(self) -> float | None:
        """Seconds of the fastest epoch, which other work on the machine slowed down least."""
        epochs = [e["seconds"] for r in self.records for e in r["timing"].get("epochs", ())]
        return min(epochs, default=None)


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
