"""The folder of a run: what may be in it before, what is written to it, and how it is read."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.atomic import replacing
from noisin_pyro.text.corpora import Vocabulary
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.record import write_record
from noisin_pyro.training.report import write_curves, write_metrics

__all__ = ["begin_folder", "check_folder", "load_run", "write_results", "write_weights"]

CURVES_EVERY = 30.0  # seconds between two plots while training


def check_folder(config: TrainConfig) -> None:
    """Refuses a folder that does not fit the run, before anything is written.

    Raises:
        ValueError: if there is a run in it that is not to be resumed, none to resume, or another.
    """
    path = Path(config.out) / "config.yaml"
    if path.exists() and not config.resume:
        raise ValueError(
            f"out {config.out!r} already holds a run; continue it with --resume true, or choose "
            "another folder"
        )
    if config.resume and not path.exists():
        raise ValueError(f"out {config.out!r} holds no run to resume; leave out --resume")
    if not path.exists():
        return
    for name, (given, before) in config.differences(
        TrainConfig.load(path, config.trust_code)
    ).items():
        raise ValueError(
            f"the run in {config.out!r} has {name} {before!r}, got {given!r}; resume it with its "
            f"own {path}, or choose another folder"
        )


def begin_folder(config: TrainConfig, vocabulary: Vocabulary) -> Path:
    """Makes the folder, and writes the configuration and the vocabulary to it.

    Raises:
        ValueError: if it cannot be written.
    """
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as temporary:
            replace(config, resume=False).save(temporary)
        if not config.resume:
            vocabulary.save(folder / "vocabulary.txt")
    except OSError as error:
        raise ValueError(
            f"out {config.out!r} cannot be written ({error.strerror}); choose another folder"
        ) from None
    return folder


def write_results(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record, the metrics and, not too often, the curves."""
    write_record(folder / "record.json", record)
    write_metrics(folder / "metrics.csv", record["models"])
    curves = folder / "curves.png"
    finished = all(model["finished"] for model in record["models"].values())
    fresh = curves.exists() and time.time() - curves.stat().st_mtime < CURVES_EVERY
    if finished or not fresh:  # a plot costs as much as an epoch of a small text
        write_curves(curves, record)


def write_weights(path: Path, model: LanguageModel) -> None:
    """Exports the weights as safetensors; a matrix shared under two names is written once."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.tied_weights:
        del weights["emission.weight"]
    with replacing(path) as temporary:
        save_file(weights, temporary)


def load_run(
    run: str | Path, trust_code: bool = False
) -> tuple[TrainConfig, Vocabulary, LanguageModel]:
    """The configuration, vocabulary and best weights of a run.

    Args:
        run: the folder that ``noisin train`` wrote.
        trust_code: import and call any class that its noise names by class_path.

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
    config = TrainConfig.load(folder / "config.yaml", trust_code)
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    with torch.random.fork_rng():
        model = build_model(config, len(vocabulary))
    try:
        weights = load_file(folder / "model.safetensors")
        if model.tied_weights:
            weights["emission.weight"] = weights["embedding.weight"]
        model.load_state_dict(weights)
    except Exception as error:  # safetensors has exceptions of its own
        raise ValueError(
            f"{folder / 'model.safetensors'} does not hold the weights of this run ({error})"
        ) from None
    return config, vocabulary, model.eval()
