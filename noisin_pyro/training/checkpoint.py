"""Checkpoint files: complete or absent, and loaded without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noisin_pyro.text.atomic import replacing

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings and containers of them atomically."""
    with replacing(path) as temporary:
        torch.save(payload, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``, onto the CPU.

    Raises:
        ValueError: if the file is missing, truncated or no checkpoint.
    """
    if path.name == "best.ckpt":
        remedy = "delete it and last.ckpt to train again"
    else:
        remedy = (
            "put a copy of best.ckpt in its place to go on from there, or delete it to start again"
        )
    if not path.exists():
        raise ValueError(f"{path} is missing; {remedy}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises different exceptions for different kinds of damage
        payload = None
    if not isinstance(payload, dict) or "epoch" not in payload:
        raise ValueError(f"{path} is truncated or no checkpoint of a run; {remedy}")
    return payload
