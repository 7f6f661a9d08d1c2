"""Zoneout (Krueger et al. 2016): a unit of the state keeps its previous value with probability p.

    h_t = d_t ⊙ z_{t-1} + (1 − d_t) ⊙ h̃_t,    d_t ~ Bernoulli(p)

h̃_t is the cell's new state. In evaluation d_t is replaced by its expectation p. The cell state c of
an LSTM has its own rate and mask, and h̃_t is computed from the c̃_t before zoneout.
https://arxiv.org/abs/1606.01305.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, loop_clean
from noisin_pyro.cells.linear import LinearCell, at_least_single, with_noise
from noisin_pyro.kernels.linear_scan import linear_scan

__all__ = ["with_zoneout"]


def with_zoneout(
    cell: Cell[Any], sizes: Sequence[int], rates: Sequence[float], drawing: bool
) -> Cell[Any]:
    """A cell followed by zoneout of its state.

    Args:
        cell: the cell.
        sizes: the widths of the parts of its state.
        rates: p of each part.
        drawing: True draws a mask for each step, False takes p in its place.
    """
    kind = _LinearZoneout if isinstance(cell, LinearCell) else _Zoneout
    return kind(cell, sizes, rates, drawing)


class _Zoneout(Cell[Any]):
    """A cell's :meth:`step`, then zoneout. The masks are further columns of the gates."""

    def __init__(
        self, cell: Cell[Any], sizes: Sequence[int], rates: Sequence[float], drawing: bool
    ) -> None:
        self.name, self.range = cell.name, cell.range
        self.recurrent_weights = cell.recurrent_weights
        self.cell, self.rates, self.drawing = cell, tuple(rates), drawing
        self.widths = [size if rate else 0 for size, rate in zip(sizes, rates)]

    def state_sizes(self, hidden: int) -> tuple[int, ...]:
        return self.cell.state_sizes(hidden)

    def project(self, x: Tensor, weights: Any) -> Tensor:
        gates = self.cell.project(x, weights)
        parts = [gates]
        for width, rate in zip(self.widths, self.rates):
            kept = gates.new_full((*gates.shape[:-1], width), rate)
            parts.append(torch.bernoulli(kept) if self.drawing and width else kept)
        return torch.cat(parts, -1)

    def step(self, gates: Tensor, state: State, weights: Any) -> State:
        gates, kept = self._split(gates)
        return _zoned(self.cell.step(gates, state, weights), state, kept)

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: Any) -> State:
        gates, kept = self._split(gates)
        return _zoned(self.cell.step_reading(gates, read, state, weights), state, kept)

    def scan_clean(
        self,
        gates: Tensor,
        state: State,
        weights: Any,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        return loop_clean(self, gates, state, weights, mult, add)

    def _split(self, gates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gates of the cell, and the mask of each part of the state."""
        inner, *kept = gates.split([gates.shape[-1] - sum(self.widths), *self.widths], -1)
        return inner, kept


class _LinearZoneout(_Zoneout):
    """z_t = m_t ((d_t + (1 − d_t) a_t) z_{t-1} + (1 − d_t) b_t) + n_t, in one scan over time."""

    cell: LinearCell

    def scan(
        self,
        gates: Tensor,
        state: State,
        weights: Any,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        dtype = gates.dtype
        gates, (kept,) = self._split(at_least_single(gates))
        a, b = self.cell.coefficients(gates, weights)
        a, b = torch.lerp(a, torch.ones_like(a), kept), (1 - kept) * b
        a, b = with_noise(a, b, mult, add)
        return (linear_scan(a, b, state[0].to(b.dtype)).to(dtype),)

    scan_clean = Cell.scan_clean


def _zoned(new: State, old: State, kept: Sequence[Tensor]) -> State:
    """``new`` where a mask is 0 and ``old`` where it is 1; torch's lerp is exact at both."""
    return tuple(
        torch.lerp(part, before.to(part.dtype), k) if k.shape[-1] else part
        for part, before, k in zip(new, old, kept)
    )
