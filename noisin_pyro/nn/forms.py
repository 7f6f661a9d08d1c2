"""The forms of sequences and states in torch's RNNs: packed sequences, nested tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

__all__ = ["map_state", "packed_like"]


def packed_like(packed: PackedSequence, output: Tensor, lengths: Tensor) -> PackedSequence:
    """Packs an output in the form of its input.

    Args:
        packed: the packed input.
        output: the output, padded, with shape (T, B, H).
        lengths: each sequence's number of steps, with shape (B,).

    Raises:
        ValueError: if the output has dimensions of particles.
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
    """The state with ``change`` applied to each tensor in it; None stays None."""
    if isinstance(state, (tuple, list)):
        return tuple(map_state(part, change) for part in state)
    return None if state is None else change(state)
