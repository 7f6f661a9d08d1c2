"""Writes numbers by epoch for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisin_pyro.text.perplexity import perplexity

__all__ = ["AddScalar", "log_epoch", "tensorboard_log"]

AddScalar = Callable[[str, float, int], None]
"""Called with a name, a number and an epoch."""


@contextmanager
def tensorboard_log(folder: Path, wanted: bool) -> Iterator[AddScalar | None]:
    """Yields a function that writes numbers, and closes their file at the end of the block.

    Args:
        folder: the folder of the file.
        wanted: False writes no file, and yields None.
    """
    if not wanted:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.absolute())) as writer:
        yield writer.add_scalar


def log_epoch(log: AddScalar, label: str, row: dict[str, Any]) -> None:
    """Writes the perplexities and γ of an epoch.

    Args:
        log: the function that writes a number.
        label: the name of the model, which the names of the numbers begin with.
        row: the epoch's row in the history of a training's progress.
    """
    values = {f"{split}_perplexity": perplexity(row[split]) for split in ("train", "valid")}
    values |= {f"spread_l{k}": s for k, s in enumerate(row["spread"]) if s is not None}
    for name, value in values.items():
        log(f"{label}/{name}", value, row["epoch"])
