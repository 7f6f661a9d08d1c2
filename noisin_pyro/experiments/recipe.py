"""What a row of a table trains: a recipe in YAML that inherits from others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from noisin_pyro.training.config import TrainConfig

__all__ = ["EXPERIMENTS", "Options", "Recipe", "data_folder", "recipes"]

_FOLDER = Path(__file__).resolve().parent / "recipes"

#: The experiments that train, in the order of the paper.
EXPERIMENTS = ("table2", "table3", "figure2", "spread", "samples")


@dataclass(frozen=True)
class Options:
    """What a reproduction may change about its recipes.

    Args:
        corpus: another text than the recipe's.
        data_dir: the folder that holds a published corpus's files, or a folder of its name.
        epochs: another limit than the recipe's.
        grid: how many entries of each grid to try.
        seeds: how many seeds the chosen entry is run with.
        device: auto, cpu or cuda.
        precision: another precision than 32.
    """

    corpus: str | None = None
    data_dir: str | None = None
    epochs: int | None = None
    grid: int | None = None
    seeds: int = 3
    device: str = "auto"
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "grid", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Recipe:
    """One row.

    Args:
        name: the experiment and the row, such as ``table2/1-tanh-noisin``.
        records: the recipe whose records these are; its own name but for rows that repeat one.
        method: the column of its table, such as ``NOISIN*``.
        block: the rows it competes with.
        paper: the paper's test perplexity.
        config: what it sets of a :class:`TrainConfig`.
        grid: by name, the values of the method's hyper-parameter.
        samples: numbers of noisy RNNs to average over at test time.
    """

    name: str
    records: str
    method: str
    block: str
    paper: float | None
    config: dict[str, Any]
    grid: dict[str, dict[str, Any]]
    samples: tuple[int, ...]

    @property
    def row(self) -> str:
        """Its name within the experiment."""
        return self.name.partition("/")[2]

    @property
    def corpus(self) -> str:
        """The text that it trains on."""
        return str(self.config["corpus"])

    @property
    def folder(self) -> str:
        """The folder of that text's records: its name, or of a path its last part."""
        return Path(self.corpus).name

    def points(self, options: Options) -> list[str]:
        """The entries of the grid to try, in order."""
        return list(self.grid)[: options.grid]

    def train_config(self, point: str, seed: int, options: Options) -> TrainConfig:
        """The run of one entry of the grid.

        Raises:
            ValueError: if the recipe sets what a run does not have, or a value that does not fit.
        """
        chosen = {**self.config, **self.grid[point], "seed": seed, "device": options.device}
        for name in ("epochs", "precision"):
            if getattr(options, name) is not None:
                chosen[name] = getattr(options, name)
        chosen["data_dir"] = data_folder(options.data_dir, self.corpus)
        try:
            return TrainConfig(**chosen)
        except TypeError as error:
            raise ValueError(f"the recipe {self.name} does not fit a run ({error})") from None


def data_folder(data_dir: str | None, corpus: str) -> str | None:
    """Where a published corpus's files are: ``data_dir``, or its folder of the corpus's name."""
    if data_dir is None:
        return None
    own = Path(data_dir) / corpus
    return str(own if own.is_dir() else data_dir)


def recipes(experiment: str, options: Options = Options()) -> list[Recipe]:
    """The rows of an experiment, in the order of its table.

    Args:
        experiment: one of :data:`EXPERIMENTS`.
        options: of which ``corpus`` counts here. An experiment may bring sizes of its own for a
            text, in ``_<corpus>.yaml``.

    Raises:
        ValueError: if there is no such experiment.

    Example:
        >>> [recipe.row for recipe in recipes("table3")]
        ['noisin', 'none']
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(
            f"unknown experiment {experiment!r}; the known ones are {', '.join(EXPERIMENTS)}"
        )
    files = sorted((_FOLDER / experiment).glob("[!_]*.yaml"))
    return [_on_corpus(_recipe(path), options.corpus) for path in files]


def _recipe(path: Path) -> Recipe:
    held = _read(path)
    name = path.relative_to(_FOLDER).with_suffix("").as_posix()
    return Recipe(
        name=name,
        records=held.get("records", name),
        method=str(held["method"]),
        block=held["block"],
        paper=held.get("paper"),
        config=held["config"],
        grid=held["grid"],
        samples=tuple(held["samples"]),
    )


def _on_corpus(recipe: Recipe, corpus: str | None) -> Recipe:
    if corpus is None or corpus == recipe.corpus:
        return recipe
    sizes = (_FOLDER / recipe.records).parent / f"_{corpus}.yaml"
    own = _read(sizes)["config"] if sizes.exists() else {}
    return replace(recipe, config={**recipe.config, **own, "corpus": corpus}, paper=None)


@cache
def _read(path: Path) -> dict[str, Any]:
    """A recipe's file on top of what it inherits; ``config`` is merged, all else replaced."""
    own: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    parents = own.pop("inherits", [])
    merged: dict[str, Any] = {}
    for part in [*map(_read, _paths(path, parents)), own]:
        config = {**merged.get("config", {}), **part.get("config", {})}
        merged = {**merged, **part, "config": config}
    return merged


def _paths(path: Path, parents: str | list[str]) -> list[Path]:
    names = [parents] if isinstance(parents, str) else parents
    return [(path.parent / name).resolve() for name in names]
