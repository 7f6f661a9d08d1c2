"""Padded sequences of different lengths: masks, checks, last steps, reversal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Lengths", "checked_lengths", "filled", "last_step", "length_mask", "reverse"]

Lengths = Tensor | Sequence[int]
"""Each sequence's number of steps, by a user: a tensor with shape (B,), or B integers."""


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """True where a step lies within its sequence.

    Args:
        lengths: each sequence's number of steps, with shape (B,).
        steps: T.

    Returns:
        The mask, with shape (T, B).

    Example:
        >>> length_mask(torch.tensor([1, 2]), 3).int()
        tensor([[1, 1],
                [0, 1],
                [0, 0]], dtype=torch.int32)
    """
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


def filled(targets: Tensor, mask: Tensor | None) -> Tensor:
    """Replaces the padding of targets, such as −100 or NaN, by each sequence's first target.

    A masked log-density must be finite too, because 0 · NaN in the backward pass is NaN.

    Args:
        targets: the targets, with shape (\\*S, T, B, \\*E).
        mask: True within a sequence, with shape (T, B, 1, ..., 1), a 1 for each dimension in \\*E;
            None if there is no padding.

    Returns:
        The targets, with the same shape.

    Example:
        >>> filled(torch.tensor([[3, 4], [5, -100]]), length_mask(torch.tensor([2, 1]), 2))
        tensor([[3, 4],
                [5, 4]])
    """
    if mask is None:
        return targets
    return torch.where(mask, targets, targets.narrow(targets.dim() - mask.dim(), 0, 1))


def checked_lengths(lengths: Any, steps: int, batch: int) -> Tensor:
    """The lengths of a batch of sequences as a tensor, after checks.

    Args:
        lengths: the lengths, by a user.
        steps: T.
        batch: B.

    Raises:
        ValueError: unless they are B integers in 1 … T.
    """
    if isinstance(lengths, Sequence) and all(isinstance(length, int) for length in lengths):
        lengths = torch.tensor(lengths, dtype=torch.long, device="cpu")
    if not isinstance(lengths, Tensor):
        got = repr(lengths)
    elif lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.shape != (batch,):
        got = f"{lengths.dtype} with shape {tuple(lengths.shape)}"
    elif batch and (int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise ValueError(
            f"lengths must lie between 1 and the input's {steps} steps, got "
            f"{lengths.tolist()}; drop empty sequences and pad the input"
        )
    else:
        return lengths
    raise ValueError(
        f"lengths must be integers with shape ({batch},), one for each sequence, got {got}"
    )


def last_step(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """A copy of each sequence's last step.

    Args:
        sequence: with shape (\\*S, T, B, H).
        lengths: each sequence's number of steps, with shape (B,), or None for T.

    Returns:
        The last steps, with shape (\\*S, 1, B, H).
    """
    if lengths is None:
        return sequence[..., -1:, :, :].clone()  # users reset a state in place
    columns = torch.arange(sequence.shape[-2], device=sequence.device)
    return sequence[..., lengths - 1, columns, :].unsqueeze(-3)


def reverse(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses each sequence in time, with its padding still at the end.

    Args:
        sequence: with shape (\\*S, T, B, F) or (\\*S, T, 1, F), one for all sequences.
        lengths: each sequence's number of steps, with shape (B,), or None for T.

    Returns:
        The reversed sequences, with shape (\\*S, T, B, F), or without ``lengths`` that of
        ``sequence``.

    Example:
        >>> x = torch.tensor([[1, 5], [2, 6], [0, 7]]).unsqueeze(-1)
        >>> reverse(x, torch.tensor([2, 3])).squeeze(-1)
        tensor([[2, 7],
                [1, 6],
                [0, 5]])
    """
    if lengths is None:
        return sequence.flip(-3)
    steps = torch.arange(sequence.shape[-3], device=sequence.device).unsqueeze(1)
    backwards = lengths.to(sequence.device) - 1 - steps
    order = torch.where(backwards >= 0, backwards, steps)
    sequence = sequence.expand(*sequence.shape[:-2], len(lengths), -1)
    index = order.unsqueeze(-1).expand(sequence.shape)
    return sequence.gather(-3, index)
