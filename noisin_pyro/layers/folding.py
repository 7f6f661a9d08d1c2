"""Additive noise as extra input to torch's fused kernels.

Recurrent noise n enters the gates of an Elman or LSTM layer linearly,

    W_hh z_{t-1} = W_hh h_{t-1} + W_hh n_{t-1},

and is known for all t before the recurrence starts. So the noisy layer is the deterministic
layer with input [x_t ; n_{t-1}] and input weight [W_ih | W_hh], started at the carried noisy
state with n_{-1} = 0, followed by z = h + n: one call of a fused kernel, and exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from noisin_pyro.cells.cells import Cell, State, Weights

__all__ = ["fold", "fused"]


def fused(
    kernel: str,
    x: Tensor,
    state: State,
    layers: list[Weights],
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, State]:
    """Layers of torch's own recurrent kernel.

    Args:
        kernel: ``"rnn_tanh"``, ``"rnn_relu"``, ``"lstm"`` or ``"gru"``.
        x: the input, with shape (T, B, I).
        state: the start (h, c), each with shape (L, B, H).
        layers: the weights of the L layers.
        lengths: each sequence's number of steps, with shape (B,), or None for T.
        dropout: probability of zeroing, between layers, while ``training``.

    Returns:
        The top layer's h, with shape (T, B, H) and 0 past a sequence's end, and the final state
        of each sequence.
    """
    flat = [weight for weights in layers for weight in weights if weight is not None]
    options = (layers[0].b_ih is not None, len(layers), dropout, training, False)
    call: Any = getattr(torch, kernel)
    if lengths is None:
        h, *final = call(x, _joined(*state), flat, *options, False)
        return h, _split(final)
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None and back is not None
    start = _joined(*(None if part is None else part.index_select(1, order) for part in state))
    data, *final = call(packed.data, packed.batch_sizes, start, flat, *options)
    packed = PackedSequence(data, packed.batch_sizes, order, back)
    h, _ = pad_packed_sequence(packed, total_length=len(x))
    return h, _split([part.index_select(1, back) for part in final])


def fold(
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Weights,
    noise: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A layer with additive noise, through one fused kernel.

    Args:
        cell: a cell that :attr:`~noisin_pyro.cells.cells.Cell.folds`.
        x: the input, with shape (T, B, I).
        state: the carried noisy state (z, c), each with shape (1, B, H).
        weights: the layer's weights.
        noise: n = γε, with shape (T, B, H), or None for the deterministic layer.
        lengths: each sequence's number of steps, with shape (B,).

    Returns:
        z with shape (T, B, H), of no meaning past a sequence's end, and the final c with shape
        (1, B, H).
    """
    if noise is not None:
        before = torch.cat([torch.zeros_like(noise[:1]), noise[:-1]])
        x = torch.cat([x, before], -1)
        weights = weights._replace(w_ih=torch.cat([weights.w_ih, weights.w_hh], 1))
    if cell.kernel is None:
        h, c = _sigmoid(x, state[0], weights, lengths), None
    else:
        h, (_, c) = fused(cell.kernel, x, state, [weights], lengths)
    return (h if noise is None else h + noise), c


def _sigmoid(x: Tensor, z0: Tensor, weights: Weights, lengths: Tensor | None) -> Tensor:
    """A sigmoid layer through the tanh kernel: σ(a) = (1 + tanh(a/2))/2, so with u = 2h − 1

    u_t = tanh(W_ih x_t / 2 + W_hh u_{t-1} / 4 + (b_ih + b_hh + W_hh 1/2) / 2).
    """
    half = weights.w_hh.sum(1) / 4
    halved = Weights(
        weights.w_ih / 2,
        weights.w_hh / 4,
        half if weights.b_ih is None else half + weights.b_ih / 2,
        torch.zeros_like(half) if weights.b_hh is None else weights.b_hh / 2,
    )
    u, _ = fused("rnn_tanh", x, (2 * z0 - 1, None), [halved], lengths)
    return (1 + u) / 2


def _joined(h: Tensor | None, c: Tensor | None) -> Any:
    """The state as torch's kernels take it."""
    return h if c is None else (h, c)


def _split(final: list[Tensor]) -> State:
    """The state as torch's kernels return it."""
    return final[0], final[1] if len(final) > 1 else None
