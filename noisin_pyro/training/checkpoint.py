"""Checkpoint files: written atomically, loaded without running code, and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisin_pyro.atomic import replacing
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.progress import Progress

__all__ = [
    "Damaged",
    "check_origin",
    "load_checkpoint",
    "load_optimizer",
    "load_weights",
    "piece",
    "read_progress",
    "save_checkpoint",
]

_REMEDY = "bring it back from a copy, or train again in another folder"
_ROW = {"epoch", "train", "valid", "spread", "learning_rate", "seconds"}  # keys in history


class Damaged(ValueError):
    """A checkpoint that cannot be read, or of which a part does not fit the others."""


def save_checkpoint(path: Path, payload: dict[str, Any], keep: Path | None = None) -> None:
    """Saves tensors, numbers, strings and containers of them atomically.

    Args:
        path: the file.
        payload: the contents.
        keep: a path to which an old file is renamed; by default it is replaced.

    Raises:
        OSError: if the file cannot be written; it stays as it was.
    """
    data = BytesIO()  # if the disk is full, torch.save to a file raises a RuntimeError
    torch.save(payload, data)
    with replacing(path, keep) as temporary:
        temporary.write_bytes(data.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``, onto the CPU.

    Raises:
        Damaged: if the file is missing, truncated or no checkpoint.
        OSError: if there is a file, but it may not be read.
    """
    try:
        with path.open("rb") as file, piece(path, "file"):
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing; {_REMEDY}") from None
    wanted = {"config", "label", "text", "model", "averaged", "optimizer", "processes"}
    wanted |= {field.name for field in fields(Progress)} - {"changes"}
    lacking = sorted(wanted - saved.keys()) if isinstance(saved, dict) else sorted(wanted)
    if lacking:
        raise Damaged(f"{path} is damaged, it has no {lacking[0]}; {_REMEDY}")
    return dict(saved)


@contextmanager
def piece(path: Path, name: str) -> Iterator[None]:
    """Turns any error in the block into one sentence that names a part of a checkpoint.

    Raises:
        Damaged: if the block raises an error.
    """
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # torch raises different exceptions for different kinds of damage
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if name == "file":
            reason = "it is truncated or no checkpoint of a run"
        raise Damaged(
            f"{path} is damaged, its {name} cannot be used ({reason}); {_REMEDY}"
        ) from None


def check_origin(
    path: Path, saved: dict[str, Any], config: TrainConfig, label: str, sha256: str
) -> dict[str, tuple[Any, Any]]:
    """Refuses the checkpoint of another run, of the other model of this run, or of another text.

    Args:
        path: the checkpoint's file.
        saved: its contents.
        config: the run that goes on.
        label: the model that goes on.
        sha256: the SHA-256 of the run's text.

    Returns:
        The options that this run changes, of those that it may change: ``(old, new)``.

    Raises:
        ValueError: if it is of another run, model or text.
        Damaged: if its configuration cannot be read.
    """
    with piece(path, "config"):
        before = TrainConfig.from_dict(saved["config"], config.trust_code)
    remedy = "put this run's own in its place, or train in another folder"
    if saved["label"] != label:
        raise ValueError(f"{path} is a checkpoint of {saved['label']}, not of {label}; {remedy}")
    for name, (now, then) in config.differences(before).items():
        raise ValueError(
            f"{path} is of a run with {name} {then!r}, not {now!r}; go on with that, {remedy}"
        )
    if saved["text"] != sha256:
        raise ValueError(
            f"{path} is of another text than {config.corpus} now is; bring that text back, or "
            "train anew in another folder"
        )
    return before.changes(config)


def read_progress(saved: dict[str, Any], steps: int) -> Progress:
    """The counters in a checkpoint.

    Args:
        saved: the checkpoint.
        steps: the number of steps of an epoch.

    Raises:
        ValueError: if the counters do not fit each other, or ``steps``.
    """
    values = {field.name: saved[field.name] for field in fields(Progress) if field.name in saved}
    progress = Progress(**values)
    for name, default in asdict(Progress()).items():
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(values.get(name, default)) not in kinds:
            raise ValueError(f"{name} is {values[name]!r}")
    rows = [row for row in progress.history if isinstance(row, dict) and row.keys() >= _ROW]
    if len(rows) != progress.epoch - 1 or len(rows) != len(progress.history):
        raise ValueError(f"history has {len(rows)} epochs, but epoch is {progress.epoch}")
    if not 0 <= progress.step <= steps:
        raise ValueError(f"step must lie in 0 to {steps}, got {progress.step}")
    if not math.isfinite(progress.nats) or progress.tokens < 0:
        raise ValueError(f"nats is {progress.nats} over {progress.tokens} tokens")
    return progress


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads weights into a model.

    Raises:
        ValueError: if a weight is NaN or infinite.
        RuntimeError: if the weights do not fit the model.
    """
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} is NaN or infinite")
    model.load_state_dict(weights)


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Loads an optimizer's state.

    Raises:
        ValueError: if it does not fit the parameters, or is not finite.
    """
    optimizer.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value is None:  # the momentum buffer of SGD without momentum
                continue
            shaped = isinstance(value, Tensor) and value.shape in (parameter.shape, ())
            if not shaped or not value.isfinite().all():
                raise ValueError(f"{name} is not finite, or not of the shape of its parameter")
    for group in optimizer.param_groups:
        if not (isinstance(group["lr"], float) and 0 < group["lr"] < math.inf):
            raise ValueError(f"the learning rate is {group['lr']!r}")
