"""Builds, trains and measures one model of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.hosts import check_launcher
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.memory import check_memory
from noisin_pyro.training.progress import ProgressBar
from noisin_pyro.training.text import load_text

__all__ = ["check_length", "fit_model", "load_checked", "make_fabric", "measure", "seeded"]


EVALUATED = 11  # fewest tokens of an evaluation in ten streams: one input, ten targets


def check_length(corpus: Corpus, batch_size: int) -> None:
    """Refuses a corpus that is too short to train or to evaluate on.

    Raises:
        ValueError: if a split is too short; the sentence names it.
    """
    needed = {"train": max(2 * batch_size, EVALUATED), "valid": EVALUATED, "test": EVALUATED}
    for split, count in needed.items():
        tokens = len(corpus.split(split))
        if tokens < count:
            raise ValueError(
                f"the {split} split of {corpus.name} has {tokens} tokens, it needs at least "
                f"{count}; use a longer text"
                + (", or a smaller batch_size" if split == "train" else "")
            )


def load_checked(config: TrainConfig) -> Corpus:
    """Loads the corpus of a run, and checks its length, the memory and the model.

    Errors in these are so raised before any file is written. Torch's random state is left as it
    was.

    Raises:
        ValueError: if the corpus, its length, the memory, the noise or a spread does not fit.
    """
    corpus = load_text(config)
    check_length(corpus, config.batch_size)
    check_memory(config, len(corpus.vocabulary))
    with torch.random.fork_rng(devices=[]):
        build_model(config, len(corpus.vocabulary))
    return corpus


def make_fabric(config: TrainConfig) -> Fabric:
    """The devices, processes and precision of a run.

    Raises:
        ValueError: if the device is not available, or there are several hosts and neither
            torchrun nor srun has started as many processes.
    """
    check_launcher(config)
    if config.device not in ("auto", "cpu"):
        if not getattr(torch, config.device).is_available():
            raise ValueError(
                f"device {config.device} needs one that torch can see, got none; use --device cpu"
            )
        if config.device not in ACCELERATOR_REGISTRY.available_accelerators():
            raise ValueError(
                f"device {config.device} needs a lightning-fabric that knows it, the installed one "
                "does not; use --device cpu"
            )
    with _without_notes():
        return Fabric(
            accelerator=config.device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy="ddp" if config.nodes > 1 else "ddp_spawn" if config.devices > 1 else "auto",
            # On a single host Fabric starts the processes, also within a job of Slurm.
            plugins=None if config.nodes > 1 else LightningEnvironment(),
            precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
        )


@contextmanager
def _without_notes() -> Iterator[None]:
    """Fabric's notes, as on the precision it was asked for, do not reach stderr."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def fit_model(
    fabric: Fabric,
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    label: str,
    **options: Any,
) -> LanguageModel:
    """Trains a model to its last epoch, from its last checkpoint if there is one.

    Args:
        fabric, config, corpus, folder, label, options: as in
            :class:`~noisin_pyro.training.loop.Trainer`, except that ``on_steps`` is a progress bar
            by default.

    Returns:
        The model with the weights of its best epoch.

    Raises:
        Interrupted, FloatingPointError, ValueError, OSError: as :meth:`Trainer.fit` does.
    """
    with seeded(config.seed), closing(ProgressBar(config.quiet)) as bar:
        model = build_model(config, len(corpus.vocabulary))
        options = {"on_steps": bar, **options}
        trainer = Trainer(fabric, config, model, corpus, folder, label, **options)
        trainer.fit()
        trainer.load_best()
    model.vocabulary = corpus.vocabulary
    return model


def measure(
    model: LanguageModel, splits: dict[str, torch.Tensor], samples: int, seed: int
) -> dict[str, Any]:
    """Perplexity of each split, on the mean path (``samples=0``) or averaged over samples.

    For a model of characters or bytes also, under ``bits``, the bits per character or byte.
    """
    with seeded(seed):
        fits = {name: evaluate(model, tokens, samples) for name, tokens in splits.items()}
    results: dict[str, Any] = {name: fit.perplexity for name, fit in fits.items()}
    if model.vocabulary is not None and model.vocabulary.tokens != "words":
        results["bits"] = {name: fit.bits for name, fit in fits.items()}
    return {**results, "samples": samples}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Isolates torch's random state, seeded, and Pyro's param store."""
    # Without `devices` it would begin to use every GPU of the machine, and warn.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), pyro.settings.context(module_local_params=True):
        torch.manual_seed(seed)
        yield
