"""How the learning rate changes from epoch to epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule, which changes the rate after an epoch.

    Written ``constant``, ``halve-after:K`` (halve it after each epoch from the Kth on) or
    ``divide-when-worse:D`` (divide it by D when the validation loss does not fall).

    Args:
        kind: which of the three.
        value: K or D.
    """

    kind: Literal["constant", "halve-after", "divide-when-worse"]
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Reads the written form.

        Raises:
            ValueError: if it is none of the three, or its number is out of range.

        Example:
            >>> Schedule.parse("halve-after:4")
            Schedule(kind='halve-after', value=4.0)
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number) if number else 0.0
        except ValueError:
            value = math.nan
        if kind == "constant" and not number:
            return cls("constant")
        if kind == "halve-after" and number and value >= 0:
            return cls("halve-after", value)
        if kind == "divide-when-worse" and number and 1 < value < math.inf:
            return cls("divide-when-worse", value)
        raise ValueError(
            f"schedule must be constant, halve-after:K with K >= 0 or divide-when-worse:D with a "
            f"finite D > 1, got {text!r}"
        )

    def factor(self, epoch: int, worsened: bool) -> float:
        """The factor to multiply the learning rate by after ``epoch`` (1, 2, ...).

        Args:
            epoch: the epoch that has ended.
            worsened: whether its validation loss is not below that of the epoch before.
        """
        if self.kind == "halve-after" and epoch >= self.value:
            return 0.5
        if self.kind == "divide-when-worse" and worsened:
            return 1 / self.value
        return 1.0
