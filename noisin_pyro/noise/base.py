"""What every noise is: a distribution p(z | h, γ) whose mean is the state h."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Noise", "Range"]


class Range(NamedTuple):
    """The interval that a transition's states h lie in.

    Attributes:
        low, high: its ends, which may be infinite.
        closed: whether ``low`` belongs to it; ``high`` never does.
    """

    low: float
    high: float
    closed: bool = False

    def __str__(self) -> str:
        return f"{'[' if self.closed else '('}{self.low:g}, {self.high:g})"


class Noise:
    """A distribution p(z | h, γ) with E[z | h] = h; see :class:`Additive` and its siblings.

    Bases compare by identity, because torch's distributions define no ``==``: two noises are equal
    if they hold the same base object.
    """

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        """p(z | h).

        Args:
            h: the clean state, with shape (\\*, B, H).
            spread: γ, broadcastable with ``h``.

        Returns:
            A distribution with batch shape (\\*, B, H).
        """
        raise NotImplementedError

    def check_range(self, states: Range, transition: str) -> None:
        """Checks that this noise can have any state of a transition as its mean.

        Args:
            states: the range of the states.
            transition: its name, for the error.

        Raises:
            ValueError: if it cannot.
        """

    def clamp(self, h: Tensor, states: Range) -> Tensor:
        """Clamps h just inside its open range, where rounding can put it on the end.

        Only a :class:`MeanParameterized` noise needs it, which is not defined on the end itself.

        Args:
            h: the clean state, of any shape.
            states: its range.
        """
        return h
