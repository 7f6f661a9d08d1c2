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
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from noisin_pyro.cells import Cell, Weights

__all__ = ["fold", "fused"]

State = tuple[Tensor, Tensor | None]


def fused(
    kernel: str,
    x: Tensor | PackedSequence,
    state: State,
    layers: list[Weights],
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, State]:
    """Layers of torch's own recurrent kernel.

    Args:
        kernel: ``"rnn_tanh"``, ``"rnn_relu"``, ``"lstm"`` or ``"gru"``.
        x: the input, with shape (T, B, I), or a packed sequence.
        state: the start (h, c), each with shape (L, B, H); c is None but for an LSTM.
        layers: the weights of each layer.
        dropout: probability of zeroing, between layers, while ``training``.

    Returns:
        The top layer's h, with shape (T, B, H) (the packed data for a packed input), and the
        final state.
    """
    h, c = state
    flat = [w for weights in layers for w in weights if w is not None]
    carried = (h, c) if c is not None else h
    call = getattr(torch, kernel)
    has_bias = layers[0].b_ih is not None
    options = (has_bias, len(layers), dropout, training, False)
    if isinstance(x, PackedSequence):
        result = call(x.data, x.batch_sizes, carried, flat, *options)
    else:
        result = call(x, carried, flat, *options, False)
    return result[0], (result[1], result[2] if c is not None else None)


def one_layer(
    kernel: str, x: Tensor, state: State, weights: Weights, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """One fused layer whose final state is each sequence's own when ``lengths`` are given.

    Args:
        x: the input, with shape (T, B, I).
        state: the start, each with shape (B, H).
        lengths: each sequence's number of steps, with shape (B,), or None; output past a
            sequence's end is zero.

    Returns:
        h with shape (T, B, H) and the final state, each with shape (B, H).
    """
    h0, c0 = state
    start: State = (h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0))
    if lengths is None:
        h, (h_n, c_n) = fused(kernel, x, start, [weights])
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        order, back = packed.sorted_indices, packed.unsorted_indices
        start = (start[0][:, order], None if start[1] is None else start[1][:, order])
        data, (h_n, c_n) = fused(kernel, packed, start, [weights])
        h, _ = pad_packed_sequence(
            PackedSequence(data, packed.batch_sizes, order, back), total_length=x.shape[0]
        )
        h_n, c_n = h_n[:, back], None if c_n is None else c_n[:, back]
    return h, (h_n[0], None if c_n is None else c_n[0])


def fold(
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Weights,
    noise: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """A layer with additive noise, through one fused kernel.

    Args:
        cell: a cell that :attr:`~noisin_pyro.cells.Cell.folds`.
        x: the input, with shape (T, B, I).
        state: the carried noisy state (z, c), each with shape (B, H).
        weights: the layer's weights.
        noise: n = γε, with shape (T, B, H), or None for the deterministic layer.
        lengths: each sequence's number of steps, with shape (B,).

    Returns:
        z with shape (T, B, H) and the final (z, c), each with shape (B, H).
    """
    if noise is not None:
        before = torch.cat([torch.zeros_like(noise[:1]), noise[:-1]])
        x = torch.cat([x, before], -1)
        weights = weights._replace(w_ih=torch.cat([weights.w_ih, weights.w_hh], 1))
    if cell.kernel is not None:
        h, (h_n, c_n) = one_layer(cell.kernel, x, state, weights, lengths)
    else:
        h, (h_n, c_n) = _sigmoid(x, state[0], weights, lengths)
    if noise is None:
        return h, (h_n, c_n)
    if lengths is None:
        z = h + noise
        return z, (z[-1], c_n)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    z = torch.where((steps < lengths).unsqueeze(-1), h + noise, h)
    columns = torch.arange(x.shape[1], device=x.device)
    return z, (z[lengths - 1, columns], c_n)


def _sigmoid(
    x: Tensor, z0: Tensor, weights: Weights, lengths: Tensor | None
) -> tuple[Tensor, State]:
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
    u, (u_n, _) = one_layer("rnn_tanh", x, (2 * z0 - 1, None), halved, lengths)
    h = (1 + u) / 2
    if lengths is not None:
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        h = h * (steps < lengths).unsqueeze(-1)
    return h, ((1 + u_n) / 2, None)

