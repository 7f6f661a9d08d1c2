"""torch's own recurrent kernels, with sequences of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

__all__ = ["fused"]


def fused(
    kernel: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Layers of torch's own recurrent kernel.

    Args:
        kernel: ``"rnn_tanh"``, ``"rnn_relu"``, ``"lstm"`` or ``"gru"``.
        x: the input, with shape (T, B, I).
        h: the start, with shape (D·L, B, H).
        c: likewise, of an LSTM's cell state.
        weights: flat, as the kernel takes them.
        options: whether there are biases, L, dropout between layers, whether it acts, and whether
            there is a second direction.
        lengths: each sequence's number of steps, with shape (B,), or None for T.

    Returns:
        The top layer's h, with shape (T, B, D·H) and 0 past a sequence's end, and the final state
        of each sequence, shaped as the start.
    """
    call: Any = getattr(torch, kernel)
    if lengths is None:
        output, *final = call(x, _joined(h, c), weights, *options, False)
        return output, *_split(final)
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None and back is not None
    start = _joined(h.index_select(1, order), None if c is None else c.index_select(1, order))
    data, *final = call(packed.data, packed.batch_sizes, start, weights, *options)
    packed = PackedSequence(data, packed.batch_sizes, order, back)
    output, _ = pad_packed_sequence(packed, total_length=len(x))
    return output, *_split([part.index_select(1, back) for part in final])


def _joined(h: Tensor, c: Tensor | None) -> Any:
    """The state as torch's kernels take it."""
    return h if c is None else (h, c)


def _split(final: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The state as torch's kernels return it."""
    return final[0], final[1] if len(final) > 1 else None
