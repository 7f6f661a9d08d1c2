"""Shared parts of the cells' scans: loops over time with a hand-written backward pass.

A layer is scanned if its noise cannot be folded into the input (multiplicative noise; the GRU,
whose reset gate multiplies the recurrent product) or if folding costs more (large layers on a CPU).
The loops contain only the sequential operations: the product with the input comes before the
forward loop, the activations' derivatives before the backward loop, and the gradient of the
recurrent weight after it, in one product instead of one per step.

The noise is z_t = h_t · m_t + a_t; m is None for 1, and a None for 0.

Each scan is a ``torch.autograd.Function`` with the arguments (cell, gates, z0, c0, w_hh, b_hh,
mult, add, keep). ``keep`` says whether there will be a backward pass. The tensors that the backward
pass needs are returned after the outputs, as ``setup_context`` requires. :meth:`.Cell.scan` is the
readable form. It runs in place of the scan for second derivatives, in forward mode, under
``torch.func``, whose ``vmap`` cannot write into a buffer, and under ``torch.jit.trace``, which
records buffers wrongly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, TorchCell, Weights
from noisin_pyro.kernels.mapped import needs_plain_torch
from noisin_pyro.kernels.replay import replayed_gradients

__all__ = [
    "each_step",
    "noisy",
    "run",
    "save",
    "saved",
    "scaled",
    "shifted",
    "twice_differentiable",
    "workspace",
]


def run(
    function: Any,
    cell: TorchCell,
    gates: Tensor,
    state: State,
    weights: Weights,
    mult: Tensor | None,
    add: Tensor | None,
    *,
    reads_bias: bool = False,
    readable: Callable[..., State] = Cell.scan,
) -> State:
    """Runs a scan, or the readable form where torch must see every operation.

    The recurrence runs in the weights' dtype, under autocast too, because its rounding adds up
    over steps.

    Args:
        function: the ``torch.autograd.Function``.
        cell, gates, state, weights, mult, add: see :meth:`.Cell.scan`.
        reads_bias: whether the function adds the recurrent bias; otherwise ``gates`` contains it.
        readable: the method of :class:`.Cell` that computes the same in plain torch.

    Returns:
        The states of all steps, each part with shape (T, B, H).
    """
    w_hh, b_hh = weights.w_hh, weights.b_hh if reads_bias else None
    gates, state = gates.contiguous(), tuple(part.to(w_hh.dtype) for part in state)
    if needs_plain_torch() or torch.compiler.is_compiling():
        return readable(cell, gates, state, weights, mult, add)
    z0, c0 = state if len(state) > 1 else (state[0], None)
    parts = (gates, z0, c0, w_hh, b_hh, mult, add)
    outputs: State = function.apply(cell, *parts, _has_backward(*parts))
    return outputs[: len(state)]


def _has_backward(*parts: Tensor | None) -> bool:
    """Whether autograd will need a backward pass."""
    return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)


def workspace(like: Tensor, width: int, keep: bool) -> Tensor:
    """Buffer (T, B, width); one shared row if there is no backward pass."""
    steps, batch, _ = like.shape
    return like.new_empty(steps if keep else 1, batch, width).expand(steps, -1, -1)


def each_step(*parts: Tensor | None, backwards: bool = False) -> Iterator[tuple[Any, ...]]:
    """The rows of tensors with shape (T, ...), step by step; of None, None.

    The views are made in one call for each tensor, which takes half the time of T indices.
    """
    rows = (repeat(None) if part is None else part.unbind(0) for part in parts)
    return zip(*(row[::-1] if backwards and isinstance(row, tuple) else row for row in rows))


def noisy(h: Tensor, mult: Tensor | None, add: Tensor | None, out: Tensor) -> Tensor:
    """z = h m + a of one step, written into ``out``."""
    if mult is None:
        return out.copy_(h) if add is None else torch.add(h, add, out=out)
    torch.mul(h, mult, out=out)
    return out if add is None else out.add_(add)


def scaled(factor: Tensor, mult: Tensor | None) -> Tensor:
    """``factor`` times ∂z/∂h = m, in place."""
    return factor if mult is None else factor.mul_(mult)


def shifted(first: Tensor, rest: Tensor) -> Tensor:
    """The sequence one step earlier: [first, rest_0, ..., rest_{T-2}]."""
    return torch.cat([first.unsqueeze(0), rest[:-1]])


def save(ctx: Any, inputs: Any, outputs: Sequence[Tensor], needed: Sequence[Tensor]) -> None:
    """Saves the seven input tensors and all returned ones for the backward pass.

    Args:
        ctx: the function's context.
        inputs: the function's arguments.
        outputs: the returned tensors that :func:`run` hands on.
        needed: the returned tensors that only the backward pass needs.
    """
    ctx.cell = inputs[0]
    ctx.mark_non_differentiable(*needed)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[1:8], *outputs, *needed)


def saved(ctx: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The seven input tensors, and the returned ones.

    A backward pass calls this once, because activation checkpointing allows one access only.
    """
    tensors = ctx.saved_tensors
    return tensors[:7], tensors[7:]


def twice_differentiable(
    readable: Callable[..., State],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a hand-written backward pass: autograd replaces it in cases it cannot handle.

    These are gradients of gradients, and backward passes that torch maps over many gradients of the
    output (:func:`.needs_plain_torch`).

    Args:
        readable: the forward pass in plain torch, a method of :class:`.Cell`.
    """

    def decorate(by_hand: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(by_hand)
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            by_autograd = torch.is_grad_enabled() or needs_plain_torch(*grads)
            if not by_autograd or all(grad is None for grad in grads):
                return by_hand(ctx, *grads)

            def plain(
                gates: Tensor, z0: Tensor, c0: Tensor | None, w_hh: Tensor, *rest: Tensor | None
            ) -> State:
                b_hh, mult, add = rest
                weights = Weights(w_hh, w_hh, None, b_hh)
                state = (z0,) if c0 is None else (z0, c0)
                return readable(ctx.cell, gates, state, weights, mult, add)

            wanted = ctx.needs_input_grad[1:8]
            return None, *replayed_gradients(plain, saved(ctx)[0], wanted, grads), None

        return backward

    return decorate
