"""The runs of a recipe, and the JSON file of each one's record, named by its options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from noisin_pyro.experiments.read_record import read_record
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.worker import lock_of
from noisin_pyro.text.sources import NAMES, PREFIX
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.former_names import FEEDBACK, renamed

__all__ = ["Run", "best_point", "due", "planned", "run_of"]

#: Options that are not meant to change a run's numbers.
_FREE = {
    *("out", "resume", "tensorboard", "device", "devices", "nodes", "data_dir", "trust_code"),
    *("checkpoint_seconds", "quiet"),
}


@dataclass(frozen=True)
class Run:
    """One training: an entry of a recipe's grid with a seed.

    Args:
        recipe: the recipe.
        point: the entry's name.
        seed: the seed.
        config: its configuration.
        results: the folder of all records.
    """

    recipe: Recipe
    point: str
    seed: int
    config: TrainConfig
    results: Path

    @property
    def name(self) -> str:
        """The name to display."""
        return f"{self.recipe.records} {self.point} seed {self.seed}"

    @property
    def place(self) -> Path:
        """The path of its record below the results, without a suffix.

        The name ends in a digest of all options that differ from the defaults, so that a run with
        another limit of epochs, say, has a record of its own. The corpus ``./t.txt`` is ``t.txt``,
        unless there is a record of 0.4.0, which told them apart.
        """
        before = self._place(self.config.corpus)
        if (self.results / f"{before}.json").exists():
            return before
        return self._place(_normal(self.config.corpus))

    def _place(self, corpus: str) -> Path:
        changed = {
            field.name: getattr(self.config, field.name)
            for field in fields(TrainConfig)
            if field.name not in _FREE and getattr(self.config, field.name) != field.default
        }
        if "corpus" in changed:
            changed["corpus"] = corpus
        if changed.get("noise_to") in FEEDBACK:  # older records have the digest of that option
            changed["feedback"] = FEEDBACK[changed.pop("noise_to")]
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return (
            Path(self.recipe.folder)
            / self.recipe.records
            / f"{self.point}.seed{self.seed}.{digest}"
        )

    @property
    def path(self) -> Path:
        """The file of its record."""
        return self.results / f"{self.place}.json"

    @property
    def lock(self) -> Path:
        """The lock beside its record, for reproductions with different folders of checkpoints."""
        return lock_of(self.path)

    def record(self) -> dict[str, Any] | None:
        """Its record, None if there is no file.

        Raises:
            ValueError: if the file is no record, is another run's, or lacks averages that the
                recipe asks for.
        """
        record = read_record(self.path)
        if record:
            self._check_origin(record["config"])
        final = record["final"] if record and record["finished"] else None
        if final and not self.config.deterministic:
            lacking = set(self.recipe.samples) - {part["samples"] for part in final["averaged"]}
            if lacking:
                raise ValueError(
                    f"{self.path} lacks the averages over {', '.join(map(str, sorted(lacking)))} "
                    f"samples that {self.recipe.name} asks for; move it away to run it again"
                )
            if self.recipe.averaging and not _all_averages(final.get("averaging", ())):
                raise ValueError(
                    f"{self.path} lacks the ways of averaging that {self.recipe.name} asks for; "
                    "move it away to run it again"
                )
        return record

    def _check_origin(self, known: dict[str, Any]) -> None:
        """Refuses a record renamed or copied from another run; an old one may lack options."""
        known = renamed(known)
        for name, value in self.config.to_dict(*_FREE, "corpus").items():
            if known.get(name, value) != value:
                raise ValueError(
                    f"{self.path} is another run's, with {name} {known[name]!r} and not {value!r}; "
                    "move it away to run this one"
                )

    @property
    def finished(self) -> bool:
        """Whether its record is complete."""
        record = self.record()
        return record is not None and record["finished"]


def _normal(corpus: str) -> str:
    """The path of a text without ``./``, ``//`` and a final ``/``; any other corpus as it is."""
    path = Path(corpus).as_posix()
    return corpus if corpus.startswith(PREFIX) or path in NAMES else path


def _all_averages(entries: Iterable[dict[str, Any]]) -> bool:
    """Whether there is an average for each variant and each number of noisy RNNs."""
    from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS  # which imports torch

    found = {(entry["readout"], entry["antithetic"], entry["samples"]) for entry in entries}
    return found >= {(*variant, count) for variant in VARIANTS for count in NUMBERS}


def run_of(recipe: Recipe, point: str, seed: int, options: Options, results: Path) -> Run:
    """The run of an entry of a recipe's grid with a seed."""
    return Run(recipe, point, seed, recipe.train_config(point, seed, options), results)


def best_point(recipe: Recipe, options: Options, results: Path) -> str | None:
    """The entry of the grid whose first seed has the lowest validation perplexity.

    None while an entry has no finished record, and if all of them diverged.
    """
    valid = {}
    for point in recipe.points(options):
        record = run_of(recipe, point, 1, options, results).record()
        if record is None or not record["finished"]:
            return None
        if record["final"]:
            valid[point] = record["final"]["mean_path"]["valid"]
    return min(valid, key=lambda point: valid[point], default=None)


def planned(recipe: Recipe, options: Options, results: Path) -> list[Run]:
    """The runs of a row: the grid and, once it is finished, further seeds of the best entry."""
    runs = [run_of(recipe, point, 1, options, results) for point in recipe.points(options)]
    best = best_point(recipe, options, results)
    if best is not None:
        seeds = range(2, options.seeds + 1)
        runs += [run_of(recipe, best, seed, options, results) for seed in seeds]
    return runs


def due(rows: Iterable[Recipe], options: Options, results: Path) -> list[Run]:
    """The runs without a finished record, each once.

    They are sorted by seed, so that every cell of the table soon has one run.
    """
    runs: dict[Path, Run] = {}
    for recipe in rows:
        for run in planned(recipe, options, results):
            if not run.finished:
                runs.setdefault(run.path, run)
    return sorted(runs.values(), key=lambda run: run.seed)
