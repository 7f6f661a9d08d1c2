"""The derivatives of σ and tanh as functions of their values, written into given buffers.

A backward pass needs them for all steps at once. With a new tensor for each operation it would
take three times as long, because the system clears the memory of large tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sigmoid_slope", "tanh_slope"]


def sigmoid_slope(y: Tensor, out: Tensor | None = None) -> Tensor:
    """σ'(a) = y (1 − y) for y = σ(a).

    Args:
        y: with any shape.
        out: the result, with the shape of y; None for a new tensor.
    """
    return torch.sub(1, y, out=torch.empty_like(y) if out is None else out).mul_(y)


def tanh_slope(y: Tensor, out: Tensor | None = None) -> Tensor:
    """tanh'(a) = 1 − y² for y = tanh a; the arguments are those of :func:`sigmoid_slope`."""
    out = torch.mul(y, y, out=torch.empty_like(y) if out is None else out)
    return torch.sub(1, out, out=out)
