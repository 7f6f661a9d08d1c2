"""A context manager for the evaluation mode of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs a block with a module in evaluation mode, then restores the mode of each submodule.

    Args:
        module: the module, whose submodules may be in different modes.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(net):
        ...     [part.training for part in net]
        [False, False]
        >>> [part.training for part in net]
        [True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
