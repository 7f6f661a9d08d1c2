"""Checkpoint files: whole or absent, and loaded without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_checkpoint", "replace_file", "save_checkpoint"]


def replace_file(path: Path, write: Any) -> None:
    """Calls ``write(temporary)`` and renames the result, so that ``path`` is never half-written."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)


def save_checkpoint(fabric: Any, path: Path, payload: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings and containers of them, through Fabric, atomically."""
    temporary = path.with_name(path.name + ".partial")
    fabric.save(temporary, payload)
    if fabric.global_rank == 0:
        os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint with ``weights_only=True``, onto the CPU.

    Raises:
        ValueError: if the file is missing, truncated or no checkpoint.
    """
    best = path.name == "best.ckpt"
    remedy = (
        "delete it and last.ckpt to train again"
        if best
        else "put a copy of best.ckpt in its place to go on from there, or delete it to start again"
    )
    if not path.exists():
        raise ValueError(f"{path} is missing; {remedy}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torch raises depends on where the file is damaged
        payload = None
    if not isinstance(payload, dict) or "epoch" not in payload:
        raise ValueError(f"{path} is truncated or no checkpoint of a run; {remedy}")
    return payload
