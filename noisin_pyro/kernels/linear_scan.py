"""The linear recurrence h_t = a_t ⊙ h_{t-1} + b_t as a differentiable function.

:mod:`.blocked_scan` computes values and gradients. This module adds derivatives of any order,
``torch.func`` and ``torch.compile``. :func:`linear_loop` is the readable form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from noisin_pyro.kernels.blocked_scan import ends_of, scan_gradients, scan_into
from noisin_pyro.kernels.mapped import is_forward_mode, needs_plain_torch

__all__ = ["linear_loop", "linear_scan"]


def linear_loop(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """The readable form of :func:`linear_scan`: a loop with autograd's gradients.

    Args:
        a: the coefficients, with shape (T, \\*B, H), or a shape that broadcasts to it.
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

    It has derivatives of any order, in both modes, and works under ``torch.func`` and
    ``torch.compile``. Half precision is computed in float32 and returned in half precision. Where
    \\|a\\| > 1, rounding errors grow with the products of a, as in the loop. On a GPU, the package
    accelerated-scan computes float32 if it is installed.

    Args:
        a: the coefficients, with shape (T, \\*B, H), or a shape that broadcasts to it, such as
            (H,) or (T, 1, 1). They may have either sign, be zero, or exceed 1.
        b: the inputs, with shape (T, \\*B, H).
        h0: the state before the first step, with shape (\\*B, H); zero if omitted.

    Returns:
        h, with shape (T, \\*B, H).

    Raises:
        TypeError: if a tensor is not real floating-point.
        ValueError: if the shapes do not broadcast.

    Example:
        >>> linear_scan(torch.tensor([2.0, 0.5, 1.0]), torch.ones(3))
        tensor([1.0000, 1.5000, 2.5000])

        The recurrence of a minGRU (Feng et al. 2024, https://arxiv.org/abs/2410.01201) with
        multiplicative noise m:

        >>> k, g, m = torch.randn(3, 100, 8, 4).unbind(0)  # (T, B, H) each
        >>> a, b = torch.sigmoid(-k), torch.sigmoid(k) * g
        >>> linear_scan(m * a, m * b).shape
        torch.Size([100, 8, 4])
    """
    a, b, h0, dtype = _prepared(a, b, h0)
    if not len(b):
        return b.to(dtype)
    scan: Callable[..., Tensor] = _states_op if _is_traced(b) else _linked
    return scan(a, b, h0, False).to(dtype)


def _prepared(
    a: Tensor, b: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """a, b and h0 broadcast and in the dtype of the computation, and the dtype of the result.

    Raises:
        TypeError, ValueError: as :func:`linear_scan`.
    """
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
    """The recurrence with its gradients; ``reverse`` is that of :func:`.scan_into`.

    The gradient of each direction is the recurrence in the other direction, so both have
    derivatives of any order.
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
        if torch.is_grad_enabled() or needs_plain_torch(grad):
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
        """Moves the mapped dimension behind time, where it is one more batch dimension."""

        def moved(part: Tensor, dim: int | None, to: int) -> Tensor:
            if dim is not None:
                return part.movedim(dim, to)
            shape = (*part.shape[:to], info.batch_size, *part.shape[to:])
            return part.unsqueeze(to).expand(shape)

        parts = (moved(part, dim, to) for part, dim, to in zip((a, b, h0), in_dims, (1, 1, 0)))
        return _Scan.apply(*parts, reverse), 1  # type: ignore[no-untyped-call]


def _differentiable_gradients(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """:func:`.scan_gradients` with autograd, for further derivatives."""
    early, late, _, last = ends_of(reverse)

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
    scan_into(a, b, h0, h, reverse)
    return h


def _gradients(
    grad: Tensor, a: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """:func:`.scan_gradients` with the signature that ``torch.library`` reads."""
    return scan_gradients(grad, a, h0, h, reverse)


def _linked(a: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The recurrence with autograd, by the loop where :class:`_Scan` has no rule.

    That is in forward mode, where torch 2.13 silently takes nested derivatives through the ``jvp``
    of an ``autograd.Function`` for 0, under ``torch.jit.trace``, which records no gradient of one,
    and where ``b`` is mapped by the older vmap of ``torch.autograd.grad(is_grads_batched=True)``.
    """
    loops = is_forward_mode() or torch._C._get_tracing_state() is not None
    if not loops and not torch._C._functorch.is_legacy_batchedtensor(b):
        return _Scan.apply(a, b, h0, reverse)  # type: ignore[no-any-return, no-untyped-call]
    if reverse:
        return linear_loop(a.flip(0), b.flip(0), h0).flip(0)
    return linear_loop(a, b, h0)


# torch.compile would unroll the loops, so they are custom operations to it, with _Scan's gradient.
# Eager mode uses _Scan, because a custom operation costs about 30 µs more per call, and has neither
# vmap nor second derivatives.
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
    """Whether a tensor has no values: operations on it are recorded, or give shapes alone."""
    recorded = isinstance(part, (FakeTensor, FunctionalTensor))
    return recorded or torch.compiler.is_compiling() or part.is_meta
