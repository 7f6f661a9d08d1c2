"""Raises errors that every worker would meet before the first one is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import planned
from noisin_pyro.text.sources import check_data_dir

__all__ = ["make_folder", "refuse_early"]


def refuse_early(
    rows: Sequence[Recipe],
    options: Options,
    results: Path,
    work: Path,
    check_device: bool = True,
) -> None:
    """Checks the device, the corpora, both folders, and that old records are of the same corpora.

    Raises:
        ValueError: if there is no such device or corpus, a record is of another text than the one
            that the corpus's name stands for now, or a folder cannot be written to.
    """
    if options.corpus is not None:
        check_data_dir(options.corpus, options.data_dir)
    from noisin_pyro.training.fit import check_length, make_fabric
    from noisin_pyro.training.text import load_text

    texts: dict[str, str] = {}
    for recipe in rows:
        config = recipe.train_config(recipe.points(options)[0], 1, options)
        if config.corpus not in texts:
            if check_device:  # not if the jobs run on other machines
                make_fabric(config)
            corpus = load_text(config)
            check_length(corpus, config.batch_size)
            texts[config.corpus] = corpus.sha256
    make_folder(results, "results")
    make_folder(work, "work")
    for run in [run for recipe in rows for run in planned(recipe, options, results)]:
        record, now = run.record(), texts[run.config.corpus]
        if record and record["corpus"]["sha256"] != now:
            raise ValueError(
                f"{run.path} is of a text with SHA-256 {record['corpus']['sha256']}, but "
                f"{run.config.corpus} is now one with {now}; give --results another folder"
            )


def make_folder(folder: Path, option: str = "results") -> None:
    """Makes a folder, if there is none, and checks that it can be written to.

    Raises:
        ValueError: if it cannot; the sentence names the command-line option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{folder} must be a folder that can be written to ({error.strerror}); give "
            f"--{option} another"
        ) from None
