"""Contiguous streams of tokens, and the windows in which truncated backpropagation reads them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["streams", "window_count", "windows"]


def streams(tokens: Tensor, batch_size: int, *, overlap: bool = False) -> Tensor:
    """Cuts a token sequence into ``batch_size`` contiguous pieces of one length, side by side.

    A model reads all columns at once from top to bottom, carrying its state. Tokens at the end that
    do not fill a row, fewer than ``batch_size``, are left out; ``batch_size=1`` keeps all.

    Args:
        tokens: token ids with shape (N,).
        batch_size: B, the number of streams.
        overlap: whether a stream starts with the last token of the one before it. Without it, the
            default and the custom in training, the first token of each stream is never a target.
            With it every token but the first is a target exactly once (up to the fewer than B at
            the end), which is what an evaluation should count.

    Returns:
        A tensor with shape (N // B, B), column b holding tokens b N//B to (b+1) N//B - 1. With
        ``overlap``, shape ((N - 1) // B + 1, B).

    Raises:
        TypeError: if ``tokens`` is no tensor.
        ValueError: if ``tokens`` is not a vector or too short for one input and one target in each
            stream, or if ``batch_size`` is below 1.

    Example:
        >>> import torch
        >>> streams(torch.arange(7), batch_size=2)
        tensor([[0, 3],
                [1, 4],
                [2, 5]])
        >>> streams(torch.arange(7), batch_size=2, overlap=True)
        tensor([[0, 3],
                [1, 4],
                [2, 5],
                [3, 6]])
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"tokens must be a tensor, got {type(tokens).__name__}; use torch.as_tensor(tokens)"
        )
    if tokens.dim() != 1:
        raise ValueError(f"tokens must have shape (N,), got {tuple(tokens.shape)}; flatten them")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 1 is a single stream")
    step = (len(tokens) - overlap) // batch_size
    rows = step + overlap
    if rows < 2:
        raise ValueError(
            f"a corpus of {len(tokens)} tokens is shorter than one batch of {batch_size} streams "
            f"with an input and a target each; use a smaller batch_size or a longer text"
        )
    pieces = tokens.unfold(0, rows, step)[:batch_size]  # (B, rows)
    return pieces.T.contiguous()


def window_count(stream: Tensor, unroll: int) -> int:
    """The number of windows that :func:`windows` yields, with the shorter last one.

    Args:
        stream: token ids with shape (L, B).
        unroll: T, the steps of a full window.

    Raises:
        ValueError: if ``stream`` is not a matrix with at least two rows, or ``unroll`` is below 1.

    Example:
        >>> import torch
        >>> window_count(torch.zeros(8, 2), unroll=3)  # 7 targets per stream: 3 + 3 + 1
        3
    """
    if stream.dim() != 2 or len(stream) < 2:
        raise ValueError(
            f"a stream must have shape (L, B) with L at least 2, got {tuple(stream.shape)}; "
            "make it with streams(tokens, batch_size)"
        )
    if unroll < 1:
        raise ValueError(f"unroll must be at least 1, got {unroll}; 35 is usual for words")
    return -(-(len(stream) - 1) // unroll)


def windows(stream: Tensor, unroll: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the inputs and targets of each window; every row but the first is a target once.

    Args:
        stream: token ids with shape (L, B), from :func:`streams`.
        unroll: T, the steps of a full window. The last window is shorter if T does not
            divide L - 1.
        start: the window to begin with, counted from 0, which is the number of windows done when
            an interrupted epoch is resumed.

    Returns:
        An iterator over pairs ``x, y`` of views of ``stream``, both with shape (T, B);
        ``y[t] == x[t + 1]``.

    Raises:
        ValueError: if ``start`` is not in 0 to the number of windows, ``stream`` is not a matrix
            with at least two rows, or ``unroll`` is below 1.

    Example:
        >>> import torch
        >>> [(x.flatten().tolist(), y.flatten().tolist())
        ...  for x, y in windows(torch.arange(6).reshape(6, 1), unroll=3)]
        [([0, 1, 2], [1, 2, 3]), ([3, 4], [4, 5])]
    """
    count = window_count(stream, unroll)
    if not 0 <= start <= count:
        raise ValueError(f"start must lie in 0 to {count}, the number of windows, got {start}")
    inputs, targets = stream[:-1], stream[1:]
    return (
        (inputs[first : first + unroll], targets[first : first + unroll])
        for first in range(start * unroll, len(inputs), unroll)
    )
