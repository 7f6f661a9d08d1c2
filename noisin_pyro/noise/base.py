"""The interface of a noise: a distribution p(z | h, γ) with mean h."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Noise", "Range"]


class Range(NamedTuple):
    """The interval of a transition's states h.

    Attributes:
        low, high: its ends, which may be infinite.
        closed: whether ``low`` belongs to the interval; ``high`` never does.
    """

    low: float
    high: float
    closed: bool = False

    def __str__(self) -> str:
        return f"{'[' if self.closed else '('}{self.low:g}, {self.high:g})"


class Noise:
    """A distribution p(z | h, γ) with E[z | h] = h.

    The subclasses are :class:`Additive`, :class:`Multiplicative` and :class:`MeanParameterized`.
    Two noises are equal if they are of the same class and have the same base object, because
    torch's distributions define no ``==``.
    """

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        """p(z | h, γ).

        Args:
            h: the clean state, with shape (\\*, B, H).
            spread: γ, broadcastable with ``h``.

        Returns:
            A distribution with batch shape (\\*, B, H).
        """
        raise NotImplementedError

    def check_range(self, states: Range, transition: str) -> None:
        """Checks that every state of a transition is a possible mean of this noise.

        Args:
            states: the range of the states.
            transition: the transition's name, for the error.

        Raises:
            ValueError: if some state is not.
        """

    def clamp(self, h: Tensor, states: Range) -> Tensor:
        """Moves a state that rounding put on an open end of its range just inside the range.

        A state far outside, to which unbounded noise has taken a GRU, stays where it is.
        Only :class:`MeanParameterized` does so, because its distribution is undefined at the end;
        other noises return h.

        Args:
            h: the clean state, of any shape.
            states: its range.

        Returns:
            The state, with the same shape.
        """
        return h
