"""What counts as a number where γ is given."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeGuard

__all__ = ["is_number"]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number; a Boolean is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
