"""A whole run: a model, its deterministic twin, and the folder that tells of them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.batching import streams
from noisin_pyro.text.corpora import Corpus, Vocabulary, load_corpus
from noisin_pyro.training.build import build_model
from noisin_pyro.training.checkpoint import replace_file
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, make_fabric, measure, summarise
from noisin_pyro.training.interrupt import Interruptible
from noisin_pyro.training.loop import Interrupted, Progress
from noisin_pyro.training.record import (
    describe_corpus,
    environment,
    write_curves,
    write_metrics,
    write_record,
)

__all__ = ["SAMPLES", "load_run", "train"]

SAMPLES = 16  # noisy RNNs averaged over at test time
CURVES_EVERY = 30.0  # seconds between two plots while training


def train(config: TrainConfig, *, checkpoint_seconds: float = 60.0) -> dict[str, Any]:
    """Trains the model of a configuration and its deterministic twin, and writes the folder.

    Torch's random state is left as it was.

    Args:
        config: the run.
        checkpoint_seconds: seconds of training between two checkpoints within an epoch.

    Returns:
        The record, as ``record.json`` holds it.

    Raises:
        ValueError: if the corpus, the noise, the folder or what it holds does not fit.
        FloatingPointError: if the loss became NaN or infinite.
        Interrupted: if Ctrl-C was pressed.
    """
    folder = Path(config.out)
    _check_folder(config, folder)
    corpus = load_corpus(config.corpus, config.data_dir)
    # What does not fit is refused before any file is written.
    streams(corpus.train, config.batch_size)
    with torch.random.fork_rng():
        _build(config, len(corpus.vocabulary))
    fabric = make_fabric(config, _loggers(config, folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.yaml", replace(config, resume=False).save)
        if not config.resume:
            corpus.vocabulary.save(folder / "vocabulary.txt")
    except OSError as error:
        raise ValueError(
            f"out {config.out!r} cannot be written ({error.strerror}); choose another folder"
        ) from None
    run = partial(
        _outcome, config=config, corpus=corpus, checkpoint_seconds=checkpoint_seconds
    )  # Fabric looks through the arguments of what it launches, but not into frozen ones
    with Interruptible() if config.devices > 1 else nullcontext():  # Ctrl-C reaches every process
        outcome: dict[str, Any] | Exception = fabric.launch(run)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _build(config: TrainConfig, vocab_size: int) -> None:
    """Builds the model, to see whether that can be done."""
    try:
        build_model(config, vocab_size)
    except RuntimeError as error:  # torch's allocator has no kind of its own
        if "allocate" not in str(error):
            raise
        raise ValueError(
            f"a model of {config.layers} layers with hidden_size {config.hidden_size} and "
            f"embedding_size {config.embedding_size} does not fit in memory; lower them"
        ) from None


def _check_folder(config: TrainConfig, folder: Path) -> None:
    holds_run = (folder / "config.yaml").exists()
    if holds_run and not config.resume:
        raise ValueError(
            f"out {config.out!r} already holds a run; continue it with --resume true, or choose "
            "another folder"
        )
    if config.resume and not holds_run:
        raise ValueError(f"out {config.out!r} holds no run to resume; leave out --resume")
    if not holds_run:
        return
    for name, (given, held) in config.differences(TrainConfig.load(folder / "config.yaml")).items():
        raise ValueError(
            f"the run in {config.out!r} has {name} {held!r}, got {given!r}; resume it with its own "
            f"{folder / 'config.yaml'}, or choose another folder"
        )


def _loggers(config: TrainConfig, folder: Path) -> list[Any]:
    if not config.tensorboard:
        return []
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    return [TensorBoardLogger(root_dir=folder, name="tensorboard", version="")]


def _outcome(fabric: Fabric, **options: Any) -> dict[str, Any] | Exception:
    """What a run returns or raises, which from a process of its own would come as a traceback."""
    try:
        return _run(fabric, **options)
    except (Interrupted, ValueError, FloatingPointError) as error:
        return error


def _run(
    fabric: Fabric, config: TrainConfig, corpus: Corpus, checkpoint_seconds: float
) -> dict[str, Any]:
    """What every process of a run does."""
    folder = Path(config.out)
    train_tokens = corpus.train[: max(len(corpus.test), 2 * config.batch_size)]
    record: dict[str, Any] = {
        "schema": 1,
        "config": {k: v for k, v in asdict(config).items() if k != "resume"},
        "corpus": describe_corpus(corpus),
        "train_tokens_evaluated": len(train_tokens),
        **environment(),
        "models": {},
    }
    twin = replace(config, noise="none", learn_spread=False, variational_dropout=0.0)
    runs = {"deterministic": (twin, folder)}
    if not config.deterministic:
        label = "dropout" if config.variational_dropout else "noisin"
        runs = {label: (config, folder), "deterministic": (twin, folder / "deterministic")}
    splits = {"train": train_tokens, "valid": corpus.valid, "test": corpus.test}
    for label, (own, place) in runs.items():
        place.mkdir(exist_ok=True)
        model = fit_model(
            fabric,
            own,
            corpus,
            place,
            label,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=partial(_note, fabric, folder, record, label, corpus, config),
        )
        record["models"][label]["final"] = {
            "mean_path": measure(model, splits, 0, config.seed),
            "averaged": None if own.deterministic else measure(model, splits, SAMPLES, config.seed),
        }
        if fabric.global_rank == 0:
            weights = {name: value.contiguous() for name, value in _untied(model).items()}
            replace_file(place / "model.safetensors", lambda p, w=weights: save_file(w, p))
            _write(folder, record)
    return record


def _note(
    fabric: Fabric,
    folder: Path,
    record: dict[str, Any],
    label: str,
    corpus: Corpus,
    config: TrainConfig,
    progress: Progress,
) -> None:
    """Brings the record up to date after an epoch."""
    record["models"][label] = summarise(progress, corpus, config.batch_size)
    history = record["models"][label]["history"]
    if fabric.global_rank == 0 and history:
        _write(folder, record)
        last = history[-1]
        values = {f"{label}/{key}": last[key] for key in ("train_perplexity", "valid_perplexity")}
        spreads = {f"{label}/spread_l{k}": s for k, s in enumerate(last["spread"]) if s is not None}
        fabric.log_dict({**values, **spreads}, step=last["epoch"])


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_record(folder / "record.json", record)
    write_metrics(folder / "metrics.csv", record["models"])
    curves = folder / "curves.png"
    over = all(model["finished"] for model in record["models"].values())
    fresh = curves.exists() and time.time() - curves.stat().st_mtime < CURVES_EVERY
    if over or not fresh:  # a plot costs as much as an epoch of a small text
        write_curves(curves, record)


def _untied(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The weights, those shared by two names once."""
    weights = dict(model.state_dict())
    if model.tied_weights:
        del weights["emission.weight"]
    return weights


def load_run(run: str | Path) -> tuple[TrainConfig, Vocabulary, LanguageModel]:
    """The configuration, vocabulary and best weights of a run.

    Args:
        run: the folder that ``noisin train`` wrote.

    Raises:
        ValueError: if it is not the folder of a finished run.
    """
    folder = Path(run)
    for name in ("config.yaml", "vocabulary.txt", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{str(run)!r} is not a finished run, its {name} is missing; give the folder that "
                "noisin train wrote, or finish the run with --resume true"
            )
    config = TrainConfig.load(folder / "config.yaml")
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    with torch.random.fork_rng():
        model = build_model(config, len(vocabulary))
    try:
        weights = load_file(folder / "model.safetensors")
        if model.tied_weights:
            weights["emission.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights)
    except Exception as error:  # safetensors raises its own kinds
        raise ValueError(
            f"{folder / 'model.safetensors'} does not hold the weights of this run ({error})"
        ) from None
    return config, vocabulary, model.eval()
