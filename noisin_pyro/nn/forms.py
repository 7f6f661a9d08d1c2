"""The forms in which torch's RNNs take and return sequences and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

__all__ = ["map_state", "packed_like"]


def packed_like(packed: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
    """An output packed as its input is.

    Args:
        packed: the input.
        output: the output, padded, with shape (T, B, H).
        lengths: each sequence's number of steps, with shape (B,).

    Raises:
        ValueError: if the output has further dimensions, which are particles.
    """
    if output.dim() > 3:
        raise ValueError(
            "a PackedSequence has no room for the particles of a vectorised plate, got an output "
            f"with shape {tuple(output.shape)}; pad the input and give lengths="
        )
    order = packed.sorted_indices
    if order is not None:
        output, lengths = output[..., order, :], lengths[order.cpu()]
    return packed._replace(data=pack_padded_sequence(output, lengths).data)


def map_state(state: Any, change: Callable[[Any], Any]) -> Any:
    """A state with each of its parts changed; what is None stays None."""
    if isinstance(state, (tuple, list)):
        return tuple(map_state(part, change) for part in state)
    return None if state is None else change(state)
