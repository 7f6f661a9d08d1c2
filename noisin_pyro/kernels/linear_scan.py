"""Linear recurrences h_t = a_t ⊙ h_{t-1} + b_t, by a loop over steps and by a blocked scan.

A step that follows a step is again such a step, h_{t+1} = (a_{t+1} a_t) h_{t-1} + (a_{t+1} b_t +
b_{t+1}). So the sequence can be cut into blocks that are computed side by side (Blelloch 1990),
with some 3 √T tensor operations instead of T:

1. For each block, the product P of its a, and its last state S when it starts from zero: step by
   step within the blocks, all blocks at once.
2. The state E that each block starts from: E_{j+1} = P_j ⊙ E_j + S_j, block by block.
3. The recurrence itself from these states: step by step within the blocks, all blocks at once.

A long sequence on a CPU is first cut into chunks that fit the cache, one after the other. The work
is O(T), and pass 3 multiplies by single a only, as the loop does. The product P may overflow where
the loop's h is finite (h = 0 and a = 1e30 twice). Then some E is infinite or NaN, and the loop
computes the steps of this chunk instead.

The gradient is the same recurrence in reverse (Martin & Cundy 2018). With g_t = ∂L/∂h_t as it
comes from the loss,

    ∂L/∂b_t = g_t + a_{t+1} ⊙ ∂L/∂b_{t+1}
    ∂L/∂a_t = h_{t-1} ⊙ ∂L/∂b_t
    ∂L/∂h_0 = a_1 ⊙ ∂L/∂b_1

References:
    Blelloch, "Prefix sums and their applications", 1990.
    https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf

    Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length", 2018.
    https://arxiv.org/abs/1709.04057

    Feng et al., "Were RNNs all we needed?", 2024. https://arxiv.org/abs/2410.01201
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

__all__ = ["linear_loop", "linear_scan", "scan_into", "scan_gradients"]

_CHUNK = 1 << 19  # numbers per tensor that pass 3 still finds in a CPU's cache after pass 1
_FEWEST = 16  # steps for which blocks pay


def linear_loop(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """The readable form of :func:`linear_scan`: the same call, and torch's own gradients.

    Args:
        a: the coefficients, with shape (T, \\*B, H), or any that broadcasts with b's.
        b: the inputs, with shape (T, \\*B, H).
        h0: the state before the first step, with shape (\\*B, H); zero if omitted.

    Returns:
        h, with shape (T, \\*B, H).

    Example:
        >>> linear_loop(torch.tensor([2.0, 0.5, 1.0]), torch.ones(3))
        tensor([1.0000, 1.5000, 2.5000])
    """
    a, b, h, dtype = _prepared(a, b, h0)
    states = []
    for a_t, b_t in zip(a.unbind(0), b.unbind(0)):
        h = a_t * h + b_t
        states.append(h)
    return (torch.stack(states) if states else b).to(dtype)


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """h_t = a_t ⊙ h_{t-1} + b_t for t = 1 … T, parallel over blocks of steps.

    It has derivatives of any order, and works under ``torch.func`` (reverse mode and ``vmap``) and
    ``torch.compile``. Half precision is computed in float32 and returned in half precision. Where
    \\|a\\| > 1, rounding errors grow with the products of a, as they do in the loop. On a GPU, the
    kernel of the package accelerated-scan does float32 if it is installed.

    Args:
        a: the coefficients, with shape (T, \\*B, H), or any that broadcasts with b's: (H,), say,
            or (T, 1, 1). They may have either sign, be zero, or exceed 1.
        b: the inputs, with shape (T, \\*B, H).
        h0: the state before the first step, with shape (\\*B, H); zero if omitted.

    Returns:
        h, with shape (T, \\*B, H).

    Raises:
        TypeError: if a tensor is not of real floating-point numbers.
        ValueError: if the shapes do not fit.

    Example:
        >>> linear_scan(torch.tensor([2.0, 0.5, 1.0]), torch.ones(3))
        tensor([1.0000, 1.5000, 2.5000])

        A minGRU's recurrence (Feng et al. 2024), with multiplicative noise m inside it:

        >>> k, g, m = torch.randn(3, 100, 8, 4).unbind(0)  # (T, B, H) each
        >>> a, b = torch.sigmoid(-k), torch.sigmoid(k) * g
        >>> linear_scan(m * a, m * b).shape
        torch.Size([100, 8, 4])
    """
    a, b, h0, dtype = _prepared(a, b, h0)
    if not len(b):
        return b.to(dtype)
    scan: Callable[..., Tensor] = _states_op if _is_traced(b) else _Scan.apply
    return scan(a, b, h0, False).to(dtype)


def scan_into(a: Tensor, b: Tensor, h0: Tensor, out: Tensor) -> None:
    """:func:`linear_scan` for a caller that writes its own backward pass; it has no gradient.

    Args:
        a, b: with shape (T, \\*B, H) and of one dtype, float32 or float64.
        h0: with shape (\\*B, H).
        out: where h goes, with shape (T, \\*B, H).
    """
    for part in _chunks(b, False):
        h0 = _blocked(a[part], b[part], h0, out[part], False)


def scan_gradients(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, after: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`scan_into`.

    Args:
        grad: ∂L/∂h as it comes from the loss, with shape (T, \\*B, H).
        a, h0: as in :func:`scan_into`.
        h: what it wrote.
        after: what the steps after these add to the gradient of the last state, with shape
            (\\*B, H).

    Returns:
        ∂L/∂a and ∂L/∂b with shape (T, \\*B, H), and ∂L/∂h0.
    """
    da, db = _gradients_after(grad, a, h0, h, False, after)
    return da, db, a[0] * db[0]


def _prepared(
    a: Tensor, b: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """a, b and h0 in full shape and in the dtype to compute in, and the dtype of the result."""
    given = [part for part in (a, b, h0) if part is not None]
    for part in given:
        if not part.is_floating_point():
            raise TypeError(f"a, b and h0 must be real floating-point tensors, got {part.dtype}")
    dtype = a.dtype
    for part in given:
        dtype = torch.promote_types(dtype, part.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    a, b = a.to(wide), b.to(wide)
    h0 = b.new_zeros(()) if h0 is None else h0.to(wide)
    try:
        steps, *rest = torch.broadcast_shapes(a.shape, b.shape)
        return a.expand(steps, *rest), b.expand(steps, *rest), h0.expand(rest), dtype
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "a and b must have shape (T, *B, H), or broadcast to it, and h0 shape (*B, H); "
            f"got {tuple(a.shape)}, {tuple(b.shape)} and {tuple(h0.shape)}"
        ) from error


class _Scan(torch.autograd.Function):
    """The recurrence and its gradients; ``reverse`` runs it from the last step to the first.

    Reversed, h_t = a_t ⊙ h_{t+1} + b_t and h0 is the state after the last step. Each direction is
    the gradient of the other, so both have all derivatives.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
        return _states(a, b, h0, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, _, h0, ctx.reverse = inputs
        ctx.save_for_backward(a, h0, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, h0, h = ctx.saved_tensors
        to_a, to_b, to_h0, _ = ctx.needs_input_grad
        gradients = _gradients_op if _is_traced(grad) else _gradients
        mapped = torch._C._are_functorch_transforms_active() or _is_batched(grad)
        if torch.is_grad_enabled() or mapped:
            gradients = _differentiable_gradients
        da, db = gradients(grad, a, h0, h, ctx.reverse)
        first = -1 if ctx.reverse else 0
        return (
            da if to_a else None,
            db if to_b else None,
            a[first] * db[first] if to_h0 else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, a: Tensor, b: Tensor, h0: Tensor, reverse: bool
    ) -> tuple[Tensor, int]:
        """The mapped dimension becomes one more batch dimension, after time."""

        def moved(part: Tensor, dim: int | None, to: int) -> Tensor:
            if dim is not None:
                return part.movedim(dim, to)
            shape = (*part.shape[:to], info.batch_size, *part.shape[to:])
            return part.unsqueeze(to).expand(shape)

        parts = (moved(part, dim, to) for part, dim, to in zip((a, b, h0), in_dims, (1, 1, 0)))
        return _Scan.apply(*parts, reverse), 1  # type: ignore[no-untyped-call]


def _sides(reverse: bool) -> tuple[slice, slice, int, int]:
    """In order of computation: all steps but the last, all but the first, the first, the last."""
    early, late = slice(None, -1), slice(1, None)
    return (late, early, -1, 0) if reverse else (early, late, 0, -1)


def _differentiable_gradients(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """∂L/∂a and ∂L/∂b as functions with derivatives."""
    early, late, _, last = _sides(reverse)

    def joined(part: Tensor, end: Tensor, at_the_end: bool) -> Tensor:
        parts = (part, end.unsqueeze(0)) if at_the_end else (end.unsqueeze(0), part)
        return torch.cat(parts)

    db = grad
    if len(grad) > 1:
        rest = _linked(a[late], grad[early], grad[last], not reverse)
        db = joined(rest, grad[last], not reverse)
    return db * joined(h[early], h0, reverse), db


def _states(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h, with shape (T, \\*B, H)."""
    h = b.new_empty(b.shape)
    state = h0
    for part in _chunks(b, reverse):
        state = _blocked(a[part], b[part], state, h[part], reverse)
    return h


def _gradients(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """∂L/∂a and ∂L/∂b, with shape (T, \\*B, H)."""
    return _gradients_after(grad, a, h0, h, reverse, None)


def _gradients_after(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool, after: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for a part of a sequence, with what later steps add to the last one's gradient."""
    early, late, first, last = _sides(reverse)
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


def _linked(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The recurrence as a function with derivatives."""
    if not _is_batched(b):
        return _Scan.apply(a, b, h0, reverse)  # type: ignore[no-any-return, no-untyped-call]
    if reverse:
        return linear_loop(a.flip(0), b.flip(0), h0).flip(0)
    return linear_loop(a, b, h0)


def _is_batched(grad: Tensor) -> bool:
    """Whether ``torch.autograd.grad(is_grads_batched=True)`` maps over it.

    It does so by an older vmap, which knows nothing of :meth:`_Scan.vmap` and gets the loop.
    """
    return torch._C._functorch.is_legacy_batchedtensor(grad)


# torch.compile would unroll these loops, so it gets them as operations it cannot look into, with
# _Scan's gradient. Eager mode has _Scan itself, because an operation costs some 30 µs more, has no
# vmap, and no derivatives of derivatives.
_states_op = torch.library.custom_op("noisin_pyro::linear_scan", _states, mutates_args=())
_gradients_op = torch.library.custom_op(
    "noisin_pyro::linear_scan_backward", _gradients, mutates_args=()
)


@_states_op.register_fake
def _(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    return b.new_empty(b.shape)


@_gradients_op.register_fake
def _(grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape)


_states_op.register_autograd(_Scan.backward, setup_context=_Scan.setup_context)


def _is_traced(part: Tensor) -> bool:
    """Whether a compiler or exporter records what is done to it."""
    return torch.compiler.is_compiling() or isinstance(part, (FakeTensor, FunctionalTensor))


def _chunks(like: Tensor, reverse: bool) -> Iterator[slice]:
    """Pieces of the sequence in the order of computation; on a GPU the whole."""
    steps = len(like)
    size = steps if like.is_cuda else _CHUNK // max(like[:1].numel(), 1)
    size = max(size, _FEWEST)
    starts = range(0, steps, size)
    return (slice(start, start + size) for start in (reversed(starts) if reverse else starts))


def _blocked(a: Tensor, b: Tensor, h: Tensor, out: Tensor, reverse: bool) -> Tensor:
    """Writes the states that follow h into ``out`` and returns the last.

    Args:
        a, b, out: with shape (N, \\*B, H).
        h: with shape (\\*B, H).
        reverse: whether the last step is the first to be computed.
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
    """As :func:`_blocked`, by accelerated-scan; False if it cannot or its products overflow."""
    kernel = _accelerated_scan() if out.dtype == torch.float32 else None
    if kernel is None:
        return False
    first = -1 if reverse else 0
    b = b.clone()
    b[first].addcmul_(a[first], h)  # the kernel starts from zero
    # (N, *B, H) -> (B·H, 1, N), time from the left to the right
    rows = (part.flatten(1).t().unsqueeze(1) for part in (a, b))
    found = kernel(*(part.flip(-1) if reverse else part.contiguous() for part in rows))
    found = found.flip(-1) if reverse else found
    out.copy_(found.squeeze(1).t().view(out.shape))
    return bool(found.sum().isfinite())


@cache
def _accelerated_scan() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The Triton kernel of accelerated-scan (0.3 or later), which takes sequences of any length."""
    try:
        return import_module("accelerated_scan.scalar").scan  # type: ignore[no-any-return]
    except Exception:  # not installed, without this kernel, or without a Triton that runs
        return None
