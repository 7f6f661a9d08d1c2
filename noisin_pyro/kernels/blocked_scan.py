"""The linear recurrence h_t = a_t ⊙ h_{t-1} + b_t and its gradients, computed in blocks of steps.

Two consecutive steps compose to one step of the same form, h_{t+1} = (a_{t+1} a_t) h_{t-1} +
(a_{t+1} b_t + b_{t+1}). So the sequence can be cut into √T blocks that run in parallel (Blelloch
1990, https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf), with about 3 √T tensor operations instead of
T:

1. For each block, the product P of its a, and its last state S if it started from zero: a loop over
   the steps of a block, for all blocks at once.
2. The initial state E of each block, E_{j+1} = P_j ⊙ E_j + S_j: a loop over the blocks.
3. The states h of each block from its E: a loop over the steps of a block, for all blocks at once.

On a CPU a long sequence is first cut into chunks that fit the cache. The work is O(T). Pass 3 does
the same multiplications as the plain loop, and rounds as it does. The product P can overflow where
the loop's h is finite (h = 0 and a = 1e30 twice). Then some E is infinite or NaN, and the loop
computes this chunk instead.

The gradient is the same recurrence in reverse (Martin and Cundy 2018,
https://arxiv.org/abs/1709.04057). With g_t the gradient by h_t of the loss at fixed later states,

    ∂L/∂b_t = g_t + a_{t+1} ⊙ ∂L/∂b_{t+1}
    ∂L/∂a_t = h_{t-1} ⊙ ∂L/∂b_t
    ∂L/∂h_0 = a_1 ⊙ ∂L/∂b_1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

__all__ = ["ends_of", "scan_gradients", "scan_into"]

_CHUNK = 1 << 19  # elements per tensor that stay in a CPU's cache from pass 1 to pass 3
_FEWEST = 16  # up to this number of steps the loop is as fast as blocks


def scan_into(a: Tensor, b: Tensor, h0: Tensor, out: Tensor, reverse: bool = False) -> None:
    """Writes h_t = a_t ⊙ h_{t-1} + b_t for t = 1 … T into a buffer, without autograd.

    Args:
        a, b: the coefficients and inputs, with shape (T, \\*B, H), both float32 or both float64.
        h0: the state before the first step, with shape (\\*B, H).
        out: the buffer for h, with shape (T, \\*B, H).
        reverse: run from the last step to the first, h_t = a_t ⊙ h_{t+1} + b_t; h0 is then the
            state after the last step.

    Example:
        >>> h = torch.empty(3)
        >>> scan_into(torch.tensor([2.0, 0.5, 1.0]), torch.ones(3), torch.zeros(()), h)
        >>> h
        tensor([1.0000, 1.5000, 2.5000])
    """
    state = h0
    for part in _chunks(b, reverse):
        state = _blocked(a[part], b[part], state, out[part], reverse)


def scan_gradients(
    grad: Tensor,
    a: Tensor,
    h0: Tensor,
    h: Tensor,
    reverse: bool = False,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`scan_into` by a and b; the gradient by h0 is a_1 ⊙ ∂L/∂b_1.

    Args:
        grad: g, the gradients by the outputs h, with shape (T, \\*B, H).
        a, h0, reverse: as in :func:`scan_into`.
        h: the states that :func:`scan_into` wrote.
        after: if the sequence goes on in another call, the gradient by the last state through the
            later steps, with shape (\\*B, H).

    Returns:
        ∂L/∂a and ∂L/∂b, with shape (T, \\*B, H).
    """
    early, late, first, last = ends_of(reverse)
    da, db = h.new_empty(h.shape), h.new_empty(h.shape)
    state = db[last].copy_(grad[last])
    state = state if after is None else state.add_(after)
    a, grad, h = a[late], grad[early], h[early]
    db_early, db_late, da_late = db[early], db[late], da[late]
    for part in _chunks(grad, not reverse):
        state = _blocked(a[part], grad[part], state, db_early[part], not reverse)
        torch.mul(h[part], db_late[part], out=da_late[part])  # while db is in the cache
    torch.mul(h0, db[first], out=da[first])
    return da, db


def ends_of(reverse: bool) -> tuple[slice, slice, int, int]:
    """Indices of all steps but the last, all but the first, the first, and the last.

    First and last are meant in the order of computation.

    Args:
        reverse: whether the steps are computed from the last to the first.
    """
    early, late = slice(None, -1), slice(1, None)
    return (late, early, -1, 0) if reverse else (early, late, 0, -1)


def _chunks(like: Tensor, reverse: bool) -> Iterator[slice]:
    """The chunks of the sequence in the order of computation; on a GPU the whole sequence."""
    steps = len(like)
    size = steps if like.is_cuda else _CHUNK // max(like[:1].numel(), 1)
    size = max(size, _FEWEST)
    starts = range(0, steps, size)
    return (slice(start, start + size) for start in (reversed(starts) if reverse else starts))


def _blocked(a: Tensor, b: Tensor, h: Tensor, out: Tensor, reverse: bool) -> Tensor:
    """Writes the states that follow h into ``out`` and returns the last.

    Args:
        a, b, out: with shape (N, \\*B, H).
        h: the state before them, with shape (\\*B, H).
        reverse: whether the steps are computed from the last to the first.
    """
    steps = len(b)
    if steps <= _FEWEST:
        return _stepwise(a, b, h, out, reverse)
    if out.is_cuda and _accelerated(a, b, h, out, reverse):
        return out[0 if reverse else -1]
    length = math.isqrt(steps)
    count = steps // length
    rest = steps - count * length
    blocks, remainder = slice(steps - rest), slice(steps - rest, None)
    if reverse:
        blocks, remainder = slice(rest, None), slice(rest)
    a_blocks = a[blocks].unflatten(0, (count, length))
    # per step within the blocks, in order of computation: views with shape (count, *B, H)
    a_steps = _ordered(a_blocks, 1, reverse)
    b_steps = _ordered(b[blocks].unflatten(0, (count, length)), 1, reverse)
    out_steps = _ordered(out[blocks].unflatten(0, (count, length)), 1, reverse)

    products = a_blocks.prod(1)
    sums = b_steps[0].clone()
    for a_t, b_t in zip(a_steps[1:], b_steps[1:]):
        torch.addcmul(b_t, a_t, sums, out=sums)

    starts = out.new_empty(sums.shape)
    each = _ordered(starts, 0, reverse)
    each[0].copy_(h)
    for p, s, start, following in zip(
        _ordered(products, 0, reverse), _ordered(sums, 0, reverse), each, each[1:]
    ):
        torch.addcmul(s, p, start, out=following)
    if not starts.sum().isfinite():
        return _stepwise(a, b, h, out, reverse)

    state = starts
    for a_t, b_t, out_t in zip(a_steps, b_steps, out_steps):
        state = torch.addcmul(b_t, a_t, state, out=out_t)
    last = state[0 if reverse else -1]
    return _stepwise(a[remainder], b[remainder], last, out[remainder], reverse)


def _ordered(part: Tensor, dim: int, reverse: bool) -> Sequence[Tensor]:
    return part.unbind(dim)[:: -1 if reverse else 1]


def _stepwise(a: Tensor, b: Tensor, h: Tensor, out: Tensor, reverse: bool) -> Tensor:
    """As :func:`_blocked`, by the loop."""
    steps = (_ordered(part, 0, reverse) for part in (a, b, out))
    for a_t, b_t, out_t in zip(*steps):
        h = torch.addcmul(b_t, a_t, h, out=out_t)
    return h


def _accelerated(a: Tensor, b: Tensor, h: Tensor, out: Tensor, reverse: bool) -> bool:
    """As :func:`_blocked`, by accelerated-scan; False if it is missing or its products overflow."""
    kernel = _accelerated_scan() if out.dtype == torch.float32 else None
    if kernel is None:
        return False
    first = -1 if reverse else 0
    b = b.clone()
    b[first].addcmul_(a[first], h)  # the kernel starts from zero
    # (N, *B, H) -> (B·H, 1, N), in the order of computation
    rows = (part.reshape(len(part), -1).t().unsqueeze(1) for part in (a, b))
    states = kernel(*(part.flip(-1) if reverse else part.contiguous() for part in rows))
    states = states.flip(-1) if reverse else states
    out.copy_(states.squeeze(1).t().view(out.shape))
    return bool(states.sum().isfinite())


@cache
def _accelerated_scan() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The Triton kernel of accelerated-scan (0.3 or later), which takes sequences of any length."""
    try:
        return import_module("accelerated_scan.scalar").scan  # type: ignore[no-any-return]
    except Exception:  # not installed, without this kernel, or without a Triton that runs
        return None
