"""Checks the folder that a run is to write to. It imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from noisin_pyro.training.config import TrainConfig

__all__ = ["BEST", "FILES", "LAST", "PREVIOUS", "check_folder"]

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

#: The files that a run writes, and would replace.
FILES = (
    *("config.yaml", "vocabulary.txt", "record.json", "metrics.csv", "curves.png"),
    *(LAST, PREVIOUS, BEST, "model.safetensors", "config.json"),
)


def check_folder(config: TrainConfig) -> None:
    """Refuses a folder that does not fit the run, before anything is written.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is false, another run, or a file that
            a run would replace; or if it cannot be made or written to.
    """
    folder = Path(config.out)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = "Permission denied" if there.is_dir() else "Not a directory"
        raise ValueError(f"out {config.out!r} cannot be written ({reason}); choose another folder")
    path = folder / "config.yaml"
    if not path.exists():
        for name in (*FILES, *(f"deterministic/{name}" for name in FILES)):
            if (folder / name).exists():
                raise ValueError(
                    f"out {config.out!r} holds a {name} that is of no run; choose another folder"
                )
    elif not config.resume:
        raise ValueError(
            f"out {config.out!r} already holds a run; continue it with --resume true, or choose "
            "another folder"
        )
    else:
        before = TrainConfig.load(path, config.trust_code)
        for name, (given, then) in config.differences(before).items():
            raise ValueError(
                f"the run in {config.out!r} has {name} {then!r}, got {given!r}; resume it with its "
                f"own {path}, or choose another folder"
            )
