"""Numbers where γ is given, and where it was saved."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["is_number", "rounds_to"]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number; a Boolean is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def rounds_to(value: float, saved: Tensor) -> bool:
    """Whether a number is that of a tensor with shape (), in the tensor's dtype."""
    return float(torch.tensor(value, dtype=saved.dtype, device="cpu")) == float(saved)
