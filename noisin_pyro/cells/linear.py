"""Linear recurrent cells h_t = a_t ⊙ z_{t-1} + b_t, where a and b depend on the input alone.

A noisy layer is again a linear recurrence,

    z_t = m_t (a_t z_{t-1} + b_t) + n_t = (m_t a_t) z_{t-1} + (m_t b_t + n_t),

so one scan in parallel over time computes it (:mod:`noisin_pyro.kernels.blocked_scan`). Since h is
linear in z, and a and b do not depend on z, the noise is unbiased over all steps: given the layer's
input, E[z_t] is the deterministic h_t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, State
from noisin_pyro.cells.pieces import run_pieces
from noisin_pyro.kernels.linear_scan import linear_scan
from noisin_pyro.kernels.mapped import needs_plain_torch
from noisin_pyro.kernels.onednn import linear
from noisin_pyro.noise.base import Range

__all__ = ["LinearCell", "LinearWeights", "at_least_single", "with_noise"]


class LinearWeights(NamedTuple):
    """The weights of a layer with G gates of H units, which are functions of the input alone."""

    w_ih: Tensor  # (G·H, I)
    b_ih: Tensor | None  # (G·H,)
    decay: Tensor | None = None  # (H,), in cells with LinearCell.decays


def at_least_single(gates: Tensor) -> Tensor:
    """Gates in float32 or float64, the dtypes in which coefficients are computed.

    bfloat16 has no number between 0.996 and 1, so a unit that should forget in 500 steps would
    never forget.
    """
    return gates.to(torch.promote_types(gates.dtype, torch.float32))


def with_noise(
    a: Tensor, b: Tensor, mult: Tensor | None, add: Tensor | None
) -> tuple[Tensor, Tensor]:
    """m a and m b + n, the coefficients of a noisy layer, from those of the clean one."""
    if mult is not None:
        a, b = mult * a, mult * b
    return a, b if add is None else b + add


class LinearCell(Cell[LinearWeights]):
    """h_t = a_t ⊙ z_{t-1} + b_t; a subclass sets the attributes and has :meth:`coefficients`.

    Attributes:
        gates: G, the number of gates.
        decays: whether the cell has a parameter ``decay`` for each unit.
    """

    range = Range(-math.inf, math.inf)
    gates: int
    decays = False
    weights = LinearWeights

    def coefficients(self, gates: Tensor, weights: LinearWeights) -> tuple[Tensor, Tensor]:
        """a and b, each with shape (\\*, H), from the gates with shape (\\*, G·H)."""
        raise NotImplementedError

    def project(self, x: Tensor, weights: LinearWeights) -> Tensor:
        return linear(x, weights.w_ih, weights.b_ih).to(weights.w_ih.dtype)

    def step(self, gates: Tensor, state: State, weights: LinearWeights) -> State:
        (z,) = state
        a, b = self.coefficients(at_least_single(gates), weights)
        return ((a * z + b).to(gates.dtype),)

    def noisy(
        self, gates: Tensor, weights: LinearWeights, mult: Tensor | None, add: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The noisy layer's coefficients m a and m b + n, each with shape (T, B, H)."""
        return with_noise(*self.coefficients(gates, weights), mult, add)

    def scan(
        self,
        gates: Tensor,
        state: State,
        weights: LinearWeights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        (z,) = state
        a, b = self.noisy(at_least_single(gates), weights, mult, add)
        return (linear_scan(a, b, z.to(b.dtype)).to(gates.dtype),)

    def run(
        self,
        x: Tensor,
        state: State,
        weights: LinearWeights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        """As :meth:`.Cell.run`; on a CPU in pieces of the sequence (:mod:`.pieces`)."""
        if (
            x.device.type != "cpu"
            or weights.w_ih.dtype not in (torch.float32, torch.float64)
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or needs_plain_torch()
        ):
            return super().run(x, state, weights, mult, add)
        return (run_pieces(self, x, state[0], weights, mult, add),)
