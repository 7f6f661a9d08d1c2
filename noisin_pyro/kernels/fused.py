"""torch's fused recurrent kernels, for sequences of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

__all__ = ["fused"]


def fused(
    kernel: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs the layers of an RNN by one of torch's fused kernels.

    Under autocast on a CPU they run in the dtype of their weights, as the scans do. In half
    precision ``nn.LSTM`` may not learn at all (``results/precision.md``), and on some
    CPUs it does not run.

    Args:
        kernel: ``"rnn_tanh"``, ``"rnn_relu"``, ``"lstm"`` or ``"gru"``.
        x: the input, with shape (T, B, I).
        state: the initial state, h and for an LSTM also c, each with shape (D·L, B, H); D is the
            number of directions.
        weights: w_ih, w_hh and, with biases, b_ih and b_hh of each layer and direction, flat.
        options: the kernel's arguments (has_biases, num_layers, dropout, train, bidirectional).
        lengths: each sequence's number of steps, with shape (B,), or None for T.

    Returns:
        The top layer's h, with shape (T, B, D·H) and 0 past a sequence's end, and the final state
        of each sequence, with the shapes of the initial one.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = weights[0].dtype
        x, state = x.to(dtype), tuple(part.to(dtype) for part in state)
        with torch.autocast("cpu", enabled=False):
            return fused(kernel, x, state, weights, options, lengths)
    call: Any = getattr(torch, kernel)
    if lengths is None or not len(lengths):  # torch packs no empty batch
        output, *final = call(x, _joined(state), weights, *options, False)
        return output, tuple(final)
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None and back is not None
    start = tuple(part.index_select(1, order) for part in state)
    data, *final = call(packed.data, packed.batch_sizes, _joined(start), weights, *options)
    packed = PackedSequence(data, packed.batch_sizes, order, back)
    output, _ = pad_packed_sequence(packed, total_length=len(x))
    return output, tuple(part.index_select(1, back) for part in final)


def _joined(state: tuple[Tensor, ...]) -> Any:
    """The state in the form of torch's kernels: a tuple for an LSTM, otherwise a tensor."""
    return state if len(state) > 1 else state[0]
