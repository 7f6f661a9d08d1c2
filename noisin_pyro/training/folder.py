"""The folder of a run: opening, writing and reading it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from noisin_pyro.atomic import remove_partials
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.pretrained import load_weights, save_weights
from noisin_pyro.text.corpora import CORPORA, Corpus, Vocabulary
from noisin_pyro.text.corpora.archives import PublishedArchive
from noisin_pyro.text.corpora.datasets import PREFIX
from noisin_pyro.training.build import build_model
from noisin_pyro.training.checkpoint import (
    Damaged,
    check_origin,
    load_checkpoint,
)
from noisin_pyro.training.config import LOCK, TrainConfig
from noisin_pyro.training.lease import Held, holding
from noisin_pyro.training.memory import check_memory
from noisin_pyro.training.out import FILES, LAST, PREVIOUS, check_folder
from noisin_pyro.training.record import write_record
from noisin_pyro.training.report import write_curves, write_metrics

__all__ = ["load_run", "open_folder", "write_model", "write_results"]

CURVES_EVERY = 30.0  # seconds between two plots while training


@contextmanager
def open_folder(config: TrainConfig, corpus: Corpus, label: str) -> Iterator[None]:
    """Makes or resumes the folder of a run, and locks it while the block runs.

    Partial files that a kill left are removed; the configuration and the vocabulary are written.

    Args:
        config: the run.
        corpus: its corpus.
        label: the label of the model whose checkpoints are in the folder itself.

    Raises:
        ValueError: if another training has locked the folder, its files are of another run or
            another text, or it cannot be written to.
    """
    folder = Path(config.out)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(holding(folder / LOCK))
        except Held:
            raise ValueError(
                f"another training is running in {config.out!r}; wait for its end, or choose "
                "another folder"
            ) from None
        except OSError as error:
            raise ValueError(
                f"out {config.out!r} cannot be written ({error.strerror}); choose another folder"
            ) from None
        check_folder(config)  # again, since another training may have written to it meanwhile
        _begin(config, corpus, folder, label)
        yield


def _check_checkpoint(config: TrainConfig, corpus: Corpus, label: str) -> None:
    """Refuses a checkpoint of another run before ``config.yaml`` is overwritten."""
    for path in (Path(config.out, LAST), Path(config.out, PREVIOUS)):
        try:
            check_origin(path, load_checkpoint(path), config, label, corpus.sha256)
            return
        except Damaged:  # or missing; Trainer reports a damaged one when it resumes
            continue


def _begin(config: TrainConfig, corpus: Corpus, folder: Path, label: str) -> None:
    """Removes partial files, and writes the configuration and the vocabulary."""
    words = folder / "vocabulary.txt"
    if words.exists() and Vocabulary.load(words, corpus.vocabulary.tokens) != corpus.vocabulary:
        raise ValueError(
            f"{words} is of another text than {corpus.name} now is; bring that text back, or train "
            "anew in another folder"
        )
    _check_checkpoint(config, corpus, label)
    for place in (folder, folder / "deterministic"):
        for name in FILES:
            remove_partials(place / name)
    data_dir = config.data_dir and str(Path(config.data_dir).resolve())
    config = replace(config, corpus=_absolute(config.corpus), data_dir=data_dir)
    config.save(folder / "config.yaml")
    corpus.vocabulary.save(words)


def _absolute(corpus: str) -> str:
    """A corpus that is a path, also one after ``hf:``, as an absolute path; a name as it is."""
    prefix = PREFIX if corpus.startswith(PREFIX) else ""
    path = Path(corpus.removeprefix(prefix))
    named = corpus in CORPORA or (prefix and not path.exists())
    return corpus if named else f"{prefix}{path.resolve()}"


def write_results(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record, the metrics and, at most every 30 seconds, the curves."""
    write_record(folder / "record.json", record)
    write_metrics(folder / "metrics.csv", record["models"])
    curves = folder / "curves.png"
    finished = all(model["finished"] for model in record["models"].values())
    fresh = curves.exists() and time.time() - curves.stat().st_mtime < CURVES_EVERY
    if finished or not fresh:  # a plot costs as much as an epoch of a small text
        write_curves(curves, record)


def write_model(folder: Path, model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Writes the model for :meth:`LanguageModel.from_pretrained`.

    A noise of a trusted class may have ``init_args`` that only ``config.yaml`` can describe. Then
    no ``config.json`` is written.
    """
    try:
        model.save_pretrained(folder, vocabulary)
    except ValueError:
        vocabulary.save(folder / "vocabulary.txt")
        save_weights(model, folder)


def load_run(
    run: str | Path, trust_code: bool = False
) -> tuple[TrainConfig | None, Vocabulary, LanguageModel]:
    """Loads a finished run, or a model saved by :meth:`LanguageModel.save_pretrained`.

    Args:
        run: its folder.
        trust_code: import and call any class that its noise names by class_path.

    Returns:
        The configuration (None if a saved model has none), the vocabulary, and the model with its
        best weights, in evaluation mode.

    Raises:
        ValueError: if it is no such folder, or the run is not finished.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"{str(run)!r} is no folder; give the folder that noisin train wrote")
    described = (folder / "config.json").is_file()  # old run folders lack it
    description = "config.json" if described else "config.yaml"
    for name in (description, "vocabulary.txt", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{str(run)!r} is not a finished run, its {name} is missing; give the folder that "
                "noisin train wrote, or finish the run with --resume true"
            )
    path = folder / "config.yaml"
    config = TrainConfig.load(path, trust_code) if path.is_file() else None
    if described:
        model = LanguageModel.from_pretrained(folder, trust_code=trust_code)
        assert model.vocabulary is not None  # its file is there
        return config, model.vocabulary, model
    assert config is not None
    source = CORPORA.get(config.corpus)
    usual = source.tokens if isinstance(source, PublishedArchive) else "words"
    vocabulary = Vocabulary.load(folder / "vocabulary.txt", config.read_as or usual)
    check_memory(config, len(vocabulary), training=False)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, len(vocabulary))
    load_weights(model, folder)
    model.vocabulary = vocabulary
    return config, vocabulary, model.eval()
