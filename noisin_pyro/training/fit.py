"""One model of a run: built, trained, and measured on every split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.loop import Progress, Trainer

__all__ = ["fit_model", "make_fabric", "measure", "summarise"]


def make_fabric(config: TrainConfig, loggers: Sequence[Any] = ()) -> Fabric:
    """The devices, processes and precision of a run.

    Raises:
        ValueError: if it asks for a GPU and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda needs a GPU that torch can see, got none; use --device cpu")
    return Fabric(
        accelerator=config.device,
        devices=config.devices,
        strategy="ddp_spawn" if config.devices > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
        loggers=list(loggers),
    )


def fit_model(
    fabric: Fabric,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    label: str,
    *,
    checkpoint_seconds: float = 60.0,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    on_steps: Callable[[Progress, int], None] | None = None,
) -> LanguageModel:
    """Trains a model to its end, from its last checkpoint if there is one.

    Args:
        fabric: a launched Fabric.
        config: what to train.
        corpus: its text.
        folder: where its checkpoints are.
        label: what the progress bar calls it.
        checkpoint_seconds: seconds of training between two checkpoints within an epoch.
        on_epoch, on_steps: see :class:`~noisin_pyro.training.loop.Trainer`.

    Returns:
        The model with the weights of its best epoch.

    Raises:
        Interrupted, FloatingPointError, ValueError: as :meth:`Trainer.fit` does.
    """
    with seeded(config.seed):
        model = build_model(config, len(corpus.vocabulary))
        trainer = Trainer(
            fabric,
            config,
            model,
            corpus,
            folder,
            label,
            checkpoint_seconds,
            on_epoch,
            on_steps,
        )
        trainer.fit()
        trainer.load_best()
    return model


def measure(
    model: LanguageModel, splits: dict[str, torch.Tensor], samples: int, seed: int
) -> dict[str, Any]:
    """Perplexity of each split, on the mean path (``samples=0``) or averaged over samples."""
    with seeded(seed):
        fits = {name: evaluate(model, tokens, samples) for name, tokens in splits.items()}
    return {**{name: fit.perplexity for name, fit in fits.items()}, "samples": samples}


def summarise(progress: Progress, corpus: Corpus, batch_size: int) -> dict[str, Any]:
    """What a record says of a training: every epoch, the best of them, and the time they took."""
    tokens = (len(corpus.train) // batch_size - 1) * batch_size
    seconds = [row["seconds"] for row in progress.history]
    best = min(progress.history, key=lambda row: row["valid"], default={"epoch": 0})
    return {
        "history": [
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
        ],
        "best_epoch": best["epoch"],
        "finished": progress.finished,
        "timing": {
            "seconds": sum(seconds),
            "tokens_per_second": tokens * len(seconds) / max(sum(seconds), 1e-9),
            "epochs": [{"seconds": s, "tokens_per_second": tokens / max(s, 1e-9)} for s in seconds],
        },
    }


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A random state and a parameter store of one's own."""
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        torch.manual_seed(seed)
        yield
