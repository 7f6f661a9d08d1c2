"""Runs an experiment, and renders its table and picture."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import replacing
from noisin_pyro.experiments.cluster import Cluster
from noisin_pyro.experiments.figures import FIGURES
from noisin_pyro.experiments.preflight import make_folder
from noisin_pyro.experiments.recipe import Options, Recipe, data_dir_of, folder_name, recipes
from noisin_pyro.experiments.runner import Failure, run_all
from noisin_pyro.experiments.summary import Row, summarise_row
from noisin_pyro.experiments.tables import (
    PAPER_CORPORA,
    averages,
    comparison,
    corpora,
    details,
    provenance,
)
from noisin_pyro.text.corpora import load_corpus
from noisin_pyro.training.plots import two_panels

__all__ = ["render", "reproduce"]


def reproduce(
    experiment: str,
    options: Options,
    rows: Sequence[str] = (),
    *,
    results: Path = Path("results/reproduce"),
    work: Path = Path("runs/reproduce"),
    jobs: int = 1,
    cluster: Cluster | None = None,
    train: bool = True,
    quiet: bool = False,
) -> tuple[str, list[Failure]]:
    """Trains the runs without a finished record, and renders the tables.

    Args:
        experiment: ``table1`` or one of :data:`~noisin_pyro.experiments.recipe.EXPERIMENTS`.
        options: options that change its runs.
        rows: the names of the rows to run; all if empty. Only the tables of their corpora are
            rendered.
        results: the folder for records, Markdown and pictures, which are in a folder for each
            corpus; Table 1 of the paper's corpora is not in one of these.
        work: the folder for checkpoints, which are removed when a run has its record.
        jobs: number of trainings at a time.
        cluster: submit the trainings to this cluster; start processes on this machine if None.
        train: False only renders, and writes no file where the results may not be written to.
        quiet: show no progress.

    Returns:
        The Markdown, or a sentence that there is no record yet; and the failures.

    Raises:
        ValueError: if an argument or a record does not fit.
        Interrupted: after a signal such as Ctrl-C's, when every training has saved a checkpoint.
    """
    if experiment == "table1":
        if rows:
            raise ValueError(f"table1 has no rows to choose, got {rows[0]!r}; leave out --rows")
        return _table1(options, results), []
    chosen = _chosen(experiment, options, rows)
    for recipe in chosen:  # refuse a bad option once, and not as a failure of each row
        recipe.train_config(recipe.points(options)[0], 1, options)
    failures = _damaged(recipes(experiment, options), options, results)
    if train:
        sound = [recipe for recipe in chosen if recipe not in [f.run for f in failures]]
        failures += run_all(
            sound,
            options,
            results=results,
            work=work,
            jobs=jobs,
            cluster=cluster,
            title=experiment,
            quiet=quiet,
        )
    folders = {recipe.folder for recipe in chosen}
    begun = {row.recipe.folder for row in _begun(experiment, options, results)}
    if failures and not folders & begun:
        return f"no run of {experiment} has a record yet", failures
    write = train or os.access(results, os.W_OK)  # records of others can still be shown
    text = render(experiment, options, results, folders=folders, write=write)
    if not write:
        print(f"noisin: {results} cannot be written to; the tables are not saved", file=sys.stderr)
    return text, failures


def render(
    experiment: str,
    options: Options,
    results: Path,
    *,
    folders: Collection[str] = (),
    write: bool = False,
) -> str:
    """The Markdown of an experiment from its records alone; blocks without any are left out.

    For each corpus, with an empty line between the parts: the comparison of the methods, a line for
    each row, hardware and versions, and the command that renders it.

    Args:
        experiment: one of :data:`~noisin_pyro.experiments.recipe.EXPERIMENTS`.
        options: the options that it was run with.
        results: the folder of the records.
        folders: the names of the corpora's folders to render; all if empty.
        write: also write ``<folder>/<experiment>.md``, and a picture beside it.

    Raises:
        ValueError: if a record does not fit, or there is none.
    """
    by_folder: dict[str, list[Row]] = {}
    for row in _begun(experiment, options, results):
        if not folders or row.recipe.folder in folders:
            by_folder.setdefault(row.recipe.folder, []).append(row)
    if not by_folder:
        raise ValueError(
            f"{results} holds no record of {experiment} with these options; run it without --render"
        )
    first = averages if experiment == "samples" else comparison
    shown = f"Rendered by `{_command(experiment, options)}`."
    texts = []
    for folder, rows in by_folder.items():
        texts.append("\n\n".join([first(rows), details(rows), provenance(rows), shown]))
        if write:
            _write(results / folder / f"{experiment}.md", texts[-1])
            _draw(experiment, rows, results / folder / f"{experiment}.png")
    return "\n\n".join(texts)


def _draw(experiment: str, rows: Sequence[Row], path: Path) -> None:
    """Draws the picture of an experiment, if it has one."""
    if experiment in FIGURES:
        with two_panels(path, _title(rows)) as panels:
            FIGURES[experiment](rows, panels)


def _damaged(rows: Sequence[Recipe], options: Options, results: Path) -> list[Failure]:
    """The rows with a record that cannot be read, and why."""
    failures = []
    for recipe in rows:
        try:
            summarise_row(recipe, options, results)
        except ValueError as error:
            failures.append(Failure(recipe, str(error)))
    return failures


def _begun(experiment: str, options: Options, results: Path) -> list[Row]:
    """The rows of every block with at least one record."""
    known = recipes(experiment, options)
    damaged = [failure.run for failure in _damaged(known, options, results)]
    rows = [summarise_row(r, options, results) for r in known if r not in damaged]
    begun = {row.recipe.block for row in rows if any(row.grid.values())}
    return [row for row in rows if row.recipe.block in begun]


def _command(experiment: str, options: Options) -> str:
    """The command, with options that change the tables and differ from their defaults."""
    words = ["noisin", "reproduce", experiment]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in ("data_dir", "device") and value != field.default:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def _title(rows: Sequence[Row]) -> str:
    configs: list[dict[str, Any]] = [row.recipe.config for row in rows]
    texts = " and ".join(dict.fromkeys(config["corpus"] for config in configs))
    hidden = configs[0]["hidden_size"]
    cells = dict.fromkeys(f"{config['layers']}-layer {config['cell']}" for config in configs)
    return f"{texts}: {' and '.join(cells)}, {hidden} units"


def _chosen(experiment: str, options: Options, rows: Sequence[str]) -> list[Recipe]:
    known = {recipe.row: recipe for recipe in recipes(experiment, options)}
    for row in rows:
        if row not in known:
            raise ValueError(
                f"unknown row {row!r} of {experiment}; the known ones are {', '.join(known)}"
            )
    return [known[row] for row in dict.fromkeys(rows)] if rows else list(known.values())


def _table1(options: Options, results: Path) -> str:
    names = [options.corpus] if options.corpus else list(PAPER_CORPORA)
    loaded = {name: load_corpus(name, data_dir_of(name, options)) for name in names}
    text = corpora({name: corpus.statistics() for name, corpus in loaded.items()})
    place = results / folder_name(options.corpus) if options.corpus else results
    _write(place / "table1.md", text)
    return text


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
