"""Sequences of different lengths, padded to one: masks, checks, last steps, reversal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_lengths", "filled", "last_step", "length_mask", "reverse"]


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """True where a step lies within its sequence: lengths (B,) -> (T, B).

    Example:
        >>> length_mask(torch.tensor([1, 2]), 3).int()
        tensor([[1, 1],
                [0, 1],
                [0, 0]], dtype=torch.int32)
    """
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


def filled(targets: Tensor, mask: Tensor | None) -> Tensor:
    """Targets whose padding, whatever stands there (−100, NaN), is each sequence's first target.

    A density that is masked must be finite all the same, or its gradient would be NaN.

    Args:
        targets: with shape (\\*S, T, B, \\*), \\* being as many dimensions as the mask's after B.
        mask: True within a sequence, with shape (T, B) and further dimensions of size 1.

    Example:
        >>> filled(torch.tensor([[3, 4], [5, -100]]), length_mask(torch.tensor([2, 1]), 2))
        tensor([[3, 4],
                [5, 4]])
    """
    if mask is None:
        return targets
    return torch.where(mask, targets, targets.narrow(targets.dim() - mask.dim(), 0, 1))


def check_lengths(lengths: Any, steps: int, batch: int) -> None:
    """Raises ValueError unless ``lengths`` holds one number in 1..T for each sequence."""
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
        return
    raise ValueError(
        f"lengths must be a tensor of integers with shape ({batch},), one for each sequence, "
        f"got {got}"
    )


def last_step(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """A copy of each sequence's last step: (\\*S, T, B, H) -> (\\*S, 1, B, H)."""
    if lengths is None:
        return sequence[..., -1:, :, :].clone()  # a state is often reset in place
    columns = torch.arange(sequence.shape[-2], device=sequence.device)
    return sequence[..., lengths - 1, columns, :].unsqueeze(-3)


def reverse(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence backwards in time, its padding left where it is; (\\*S, T, B, F).

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
    index = order.unsqueeze(-1).expand(sequence.shape)
    return sequence.gather(-3, index)
