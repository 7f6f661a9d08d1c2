"""Recipes: what the rows of a table train, read from a YAML file with its blocks and methods."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from noisin_pyro.text.sources import PUBLISHED
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.safe_yaml import load_yaml

__all__ = ["EXPERIMENTS", "Options", "Recipe", "data_dir_of", "folder_name", "recipes"]

_FOLDER = Path(__file__).resolve().parent / "recipes"

#: The experiments that train models: those of the papers, then ours.
EXPERIMENTS = (
    *("table2", "table3", "figure2", "icml"),
    *("spread", "samples", "regularisers", "linear"),
)


@dataclass(frozen=True)
class Options:
    """The options of a reproduction that change its runs.

    Args:
        corpus: train on this corpus, such as pydoc, in place of the recipes'.
        data_dir: the folder with the files of a published corpus, or with a folder of such files
            for each corpus; they are downloaded if omitted.
        epochs: maximum number of epochs, in place of the recipes'.
        grid: try only the first values of each method's hyper-parameter, this many.
        seeds: number of seeds of the value with the lowest validation perplexity; the grid itself
            has seed 1.
        device: where to train; auto takes an accelerator if there is one.
        precision: precision of training, in place of the recipes'.

    Raises:
        ValueError: if a number is below 1.
    """

    corpus: str | None = None
    data_dir: str | None = None
    epochs: int | None = None
    grid: int | None = None
    seeds: int = 3
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    precision: Literal["32", "bf16-mixed"] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "grid", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Recipe:
    """One row of an experiment: a method in a block.

    Args:
        name: the experiment and the row, such as ``table2/1-tanh-noisin``.
        records: the name of the recipe whose records it reads: its own, or that of a row that it
            repeats.
        method: the column of its table, such as ``NOISIN*``.
        block: the title of its block, whose methods are compared.
        paper: the paper's test perplexity; None if it has none.
        config: the options of :class:`TrainConfig` that it sets.
        grid: the options that each entry of the method's grid sets, by the entry's name.
        samples: numbers of noisy RNNs to average over at test time.
        averaging: whether to measure each variant of averaging (:mod:`.averaging`).
    """

    name: str
    records: str
    method: str
    block: str
    paper: float | None
    config: dict[str, Any]
    grid: dict[str, dict[str, Any]]
    samples: tuple[int, ...]
    averaging: bool

    @property
    def row(self) -> str:
        """Its name within the experiment."""
        return self.name.partition("/")[2]

    @property
    def corpus(self) -> str:
        """The corpus that it trains on."""
        return str(self.config["corpus"])

    @property
    def folder(self) -> str:
        """The name of the folder of that corpus's records."""
        return folder_name(self.corpus)

    def points(self, options: Options) -> list[str]:
        """The entries of the grid to try, in order."""
        return list(self.grid)[: options.grid]

    def train_config(self, point: str, seed: int, options: Options) -> TrainConfig:
        """The run of one entry of the grid.

        Raises:
            ValueError: if the recipe sets an unknown option, or a value does not fit.
        """
        chosen = {**self.config, **self.grid[point], "seed": seed, "device": options.device}
        for name in ("epochs", "precision"):
            if getattr(options, name) is not None:
                chosen[name] = getattr(options, name)
        chosen["data_dir"] = data_dir_of(self.corpus, options)
        try:
            return TrainConfig(**chosen)
        except TypeError as error:
            raise ValueError(f"the recipe {self.name} does not fit a run ({error})") from None


def folder_name(corpus: str) -> str:
    """The name of a corpus's folder below the results: its name, or of a path its last part.

    Example:
        >>> folder_name("ptb"), folder_name("texts/mine/../yours.txt")
        ('ptb', 'yours.txt')
    """
    return Path(os.path.abspath(corpus)).name or "corpus"


def data_dir_of(corpus: str, options: Options) -> str | None:
    """The ``data_dir`` of a published corpus; None for another one, which has no files in it."""
    return options.data_dir if corpus in PUBLISHED else None


def recipes(experiment: str, options: Options = Options()) -> list[Recipe]:
    """The rows of an experiment, in the order of its file.

    Args:
        experiment: one of :data:`EXPERIMENTS`.
        options: only ``corpus`` is read here. A table may set other sizes for a corpus, under
            ``on_corpus``.

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
    return [_on_corpus(recipe, options.corpus) for recipe in _rows(experiment)]


def _rows(experiment: str) -> list[Recipe]:
    table = _read(experiment)
    if "rows" in table:  # rows of other tables under new names
        return [
            replace(_find(name), name=f"{experiment}/{row}") for row, name in table["rows"].items()
        ]
    return [
        _recipe(experiment, block, method)
        for block in table["blocks"]
        for method in _methods(table)
    ]


def _find(name: str) -> Recipe:
    return next(recipe for recipe in _rows(name.partition("/")[0]) if recipe.name == name)


def _methods(table: dict[str, Any]) -> dict[str, Any]:
    """A table's methods: its own, or those of the table it names; restricted to ``only``."""
    methods: str | dict[str, Any] = table["methods"]
    known = _methods(_read(methods)) if isinstance(methods, str) else methods
    return {name: known[name] for name in table.get("only", known)}


def _recipe(experiment: str, block: str, method: str) -> Recipe:
    """A method in a block; a table with a single block names its rows by their methods alone."""
    table, protocol = _read(experiment), _read("protocol")
    about_block, about_method = table["blocks"][block], _methods(table)[method]
    if "records" in about_block:  # a block of another table under a new name
        known = _find(f"{about_block['records']}-{method}")
        return replace(known, name=f"{experiment}/{block}-{method}")
    config: dict[str, Any] = {}
    for part in (protocol, table, about_block, about_method):
        config.update(part.get("config", {}))
    row = method if len(table["blocks"]) == 1 else f"{block}-{method}"
    return Recipe(
        name=f"{experiment}/{row}",
        records=f"{experiment}/{row}",
        method=str(about_method["title"]),
        block=about_block["title"],
        paper=about_block.get("paper", {}).get(method),
        config=config,
        grid=about_method["grids"][block] if "grids" in about_method else about_method["grid"],
        samples=tuple(table.get("samples", protocol["samples"])),
        averaging=table.get("averaging", False),
    )


def _on_corpus(recipe: Recipe, corpus: str | None) -> Recipe:
    """The recipe on another corpus, without the paper's perplexity."""
    if corpus is None or corpus == recipe.corpus:
        return recipe
    sizes = _read(recipe.records.partition("/")[0]).get("on_corpus", {}).get(corpus, {})
    config = {**recipe.config, **sizes, "corpus": corpus}
    config.pop("train_tokens", None)  # it belongs to the recipe's own corpus
    return replace(recipe, config=config, paper=None)


@cache
def _read(name: str) -> dict[str, Any]:
    return load_yaml(_FOLDER / f"{name}.yaml")
