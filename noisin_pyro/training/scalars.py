"""Writes numbers by epoch for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["AddScalar", "tensorboard_log"]

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
