"""Noise of a model that is drawn before a call, so that several calls can share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["Drawn"]


class Drawn(NamedTuple):
    """The noise of one call, drawn in advance.

    Attributes:
        input: ε of the embedded input, with shape (T, B, I); None without input noise.
        rnn: ε of each layer, with shape (T, B, H), or (1, B, H) if tied; None for a layer without
            noise or with a sample site per timestep. None for a call without noise.
    """

    input: Tensor | None
    rnn: list[Tensor | None] | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        """The noise with ``change`` applied to each ε."""
        layers = None if self.rnn is None else [_maybe(change, one) for one in self.rnn]
        return Drawn(_maybe(change, self.input), layers)

    def steps(self, steps: slice) -> Drawn:
        """The noise of a slice of the steps. A tied ε is the same in all steps."""
        return self.map(lambda epsilon: epsilon if len(epsilon) == 1 else epsilon[steps])

    def check(
        self, steps: int, batch: int, input_size: int | None, hidden_size: int, tied: bool
    ) -> None:
        """Checks that the noise fits a call. The RNN checks whether it has such layers.

        Args:
            steps: T.
            batch: B.
            input_size: I, or None for a model without input noise.
            hidden_size: H.
            tied: whether the RNN draws one ε for all steps.

        Raises:
            ValueError: if it is noise of another number of steps, sequences or units.
        """
        on_input = None if input_size is None else (steps, batch, input_size)
        in_rnn = (1 if tied else steps, batch, hidden_size)
        parts = [("input", self.input, on_input)]
        parts += [("rnn", one, in_rnn) for one in self.rnn or () if one is not None]
        for name, epsilon, wanted in parts:
            got = None if epsilon is None else tuple(epsilon.shape[-3:])
            if got != wanted:
                raise ValueError(
                    f"drawn.{name} must have shape {wanted}, got {got}; take drawn from this "
                    f"model's draw_noise({steps}, {batch})"
                )


def _maybe(change: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else change(tensor)
