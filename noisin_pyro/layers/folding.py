"""Additive noise as extra input to torch's fused kernels.

Recurrent noise n enters the gates of an Elman or LSTM layer linearly,

    W_hh z_{t-1} = W_hh h_{t-1} + W_hh n_{t-1},

and is known for all t before the recurrence starts. So the noisy layer is the deterministic
layer with input [x_t ; n_{t-1}] and input weight [W_ih | W_hh], started at the carried noisy
state with n_{-1} = 0, followed by z = h + n: one call of a fused kernel, and exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, Weights

__all__ = ["fold"]


def fold(
    cell: Cell[Weights],
    x: Tensor,
    state: State,
    weights: Weights,
    noise: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """A layer with additive noise, through one fused kernel.

    Args:
        cell: a cell that :attr:`~noisin_pyro.cells.base.Cell.folds`.
        x: the input, with shape (T, B, I).
        state: the carried noisy state, each part with shape (1, B, H).
        weights: the layer's weights.
        noise: n = γε, with shape (T, B, H), or None for the deterministic layer.
        lengths: each sequence's number of steps, with shape (B,).

    Returns:
        z with shape (T, B, H), of no meaning past a sequence's end, and the final state but for the
        last step's noise, each part with shape (1, B, H).
    """
    if noise is None:
        return cell.folded(x, state, weights, lengths)
    before = torch.cat([torch.zeros_like(noise[:1]), noise[:-1]])
    x = torch.cat([x, before], -1)
    weights = weights._replace(w_ih=torch.cat([weights.w_ih, weights.w_hh], 1))
    h, final = cell.folded(x, state, weights, lengths)
    return h + noise, final
