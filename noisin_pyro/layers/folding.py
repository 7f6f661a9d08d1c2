"""Additive noise as an extra input of torch's fused kernels.

Additive noise n enters the gates of an Elman or LSTM layer linearly,

    W_hh z_{t-1} = W_hh h_{t-1} + W_hh n_{t-1},

and is drawn for all t before the recurrence starts. So the noisy layer equals the deterministic
layer with input [x_t ; n_{t-1}] and input weight [W_ih | W_hh], followed by z = h + n. Its initial
state is the carried noisy state, and its first input has n = 0. It is one call of a fused kernel.
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
    """Runs a layer with additive noise by one call of a fused kernel.

    Args:
        cell: a cell whose :attr:`~noisin_pyro.cells.base.Cell.folds` is True.
        x: the input, with shape (T, B, I).
        state: the carried noisy state, each part with shape (1, B, H).
        weights: the layer's weights.
        noise: n = γε, with shape (T, B, H), or None for the deterministic layer.
        lengths: each sequence's number of steps, with shape (B,), or None for T.

    Returns:
        z with shape (T, B, H), arbitrary past a sequence's end, and the clean state (h, \\*clean)
        of each sequence's last step, each part with shape (1, B, H).
    """
    if noise is None:
        return cell.folded(x, state, weights, lengths)
    before = torch.cat([torch.zeros_like(noise[:1]), noise[:-1]])
    x = torch.cat([x, before], -1)
    weights = weights._replace(w_ih=torch.cat([weights.w_ih, weights.w_hh], 1))
    h, final = cell.folded(x, state, weights, lengths)
    return h + noise, final
