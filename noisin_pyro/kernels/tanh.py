"""tanh on a CPU, by torch's sigmoid where torch's tanh is slow.

torch computes tanh in single and double precision by MKL. On processors that are not Intel's that
takes four times as long as torch's own sigmoid (``benchmarks/products.py``), and in a step of a
recurrence up to a quarter of the time. tanh x = 2σ(2x) − 1 has the rounding error of numbers near
1, in single precision 10⁻⁷; so has x itself, a sum of many terms of that size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisin_pyro.kernels.processor import INTEL

__all__ = ["by_sigmoid", "tanh", "to_tanh_"]

_FEWEST = 1_000  # elements from which one call of tanh takes longer than the three calls here
_MINUS_ONE = torch.tensor(-1.0, device="cpu")


def tanh(x: Tensor, out: Tensor) -> Tensor:
    """tanh x, without autograd.

    Args:
        x: with any shape.
        out: the result, with the shape of x; may be x.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 0.0, 1.0])
        >>> tanh(x, out=x)
        tensor([-0.7616,  0.0000,  0.7616])
    """
    if INTEL or x.numel() < _FEWEST or not by_sigmoid(x):
        return torch.tanh(x, out=out)
    return to_tanh_(torch.add(x, x, out=out).sigmoid_())


def by_sigmoid(x: Tensor) -> bool:
    """Whether 2σ(2x) − 1 is as exact as tanh x needs to be: in no half precision."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def to_tanh_(sigmoid: Tensor) -> Tensor:
    """tanh x from σ(2x), in place."""
    return torch.add(_MINUS_ONE, sigmoid, alpha=2, out=sigmoid)
