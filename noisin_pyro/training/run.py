"""A whole run: a model, its deterministic twin, and the folder that tells of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from noisin_pyro.batching import streams
from noisin_pyro.corpora import Corpus, Vocabulary, load_corpus
from noisin_pyro.evaluation import evaluate
from noisin_pyro.model import LanguageModel
from noisin_pyro.training.build import build_model
from noisin_pyro.training.checkpoint import replace_file
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.loop import Progress, Trainer
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
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU that torch can see, got none; use --device cpu")
    # What does not fit is refused before any file is written.
    streams(corpus.train, config.batch_size)
    with torch.random.fork_rng():
        build_model(config, len(corpus.vocabulary))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.yaml", replace(config, resume=False).save)
        corpus.vocabulary.save(folder / "vocabulary.txt")
    except OSError as error:
        raise ValueError(
            f"out {config.out!r} cannot be written ({error.strerror}); choose another folder"
        ) from None
    fabric = Fabric(
        accelerator=config.device,
        devices=config.devices,
        strategy="ddp_spawn" if config.devices > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
        loggers=_loggers(config, folder),
    )
    run = partial(
        _run, config=config, corpus=corpus, checkpoint_seconds=checkpoint_seconds
    )  # Fabric looks through the arguments of what it launches, but not into frozen ones
    record: dict[str, Any] = fabric.launch(run)
    return record


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
    twin = replace(config, noise="none", learn_spread=False)
    runs = {"deterministic": (twin, folder)}
    if not config.deterministic:
        runs = {"noisin": (config, folder), "deterministic": (twin, folder / "deterministic")}
    splits = {"train": train_tokens, "valid": corpus.valid, "test": corpus.test}
    for label, (own, place) in runs.items():
        place.mkdir(exist_ok=True)
        with _seeded(config.seed):
            model = build_model(own, len(corpus.vocabulary))
            trainer = Trainer(
                fabric,
                own,
                model,
                corpus.train,
                corpus.valid,
                place,
                label,
                checkpoint_seconds,
                lambda progress, label=label: _note(  # type: ignore[misc]
                    fabric, folder, record, label, progress, corpus, config
                ),
            )
            trainer.fit()
        with _seeded(config.seed):
            trainer.load_best()
            final: dict[str, Any] = {}
            for key, samples in (("mean_path", 0), ("averaged", SAMPLES)):
                if samples and own.deterministic:
                    final[key] = None
                    continue
                fits = {name: evaluate(model, split, samples) for name, split in splits.items()}
                final[key] = {name: fit.perplexity for name, fit in fits.items()}
                final[key]["samples"] = samples
            record["models"][label]["final"] = final
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
    progress: Progress,
    corpus: Corpus,
    config: TrainConfig,
) -> None:
    """Brings the record up to date after an epoch."""
    tokens = (len(corpus.train) // config.batch_size - 1) * config.batch_size
    history = [
        {
            "epoch": row["epoch"],
            "train_nats": row["train"],
            "train_perplexity": _exp(row["train"]),
            "valid_nats": row["valid"],
            "valid_perplexity": _exp(row["valid"]),
            "spread": row["spread"],
            "learning_rate": row["learning_rate"],
        }
        for row in progress.history
    ]
    seconds = [row["seconds"] for row in progress.history]
    best = min(progress.history, key=lambda row: row["valid"], default={"epoch": 0})
    record["models"][label] = {
        "history": history,
        "best_epoch": best["epoch"],
        "finished": progress.finished,
        "timing": {
            "seconds": sum(seconds),
            "tokens_per_second": tokens * len(seconds) / max(sum(seconds), 1e-9),
            "epochs": [{"seconds": s, "tokens_per_second": tokens / max(s, 1e-9)} for s in seconds],
        },
    }
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


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf


def _untied(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The weights, those shared by two names once."""
    weights = dict(model.state_dict())
    if model.tied_weights:
        del weights["emission.weight"]
    return weights


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A random state and a parameter store of one's own."""
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        torch.manual_seed(seed)
        yield


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
