"""What the hand-written scans of the cells share.

A layer is scanned where noise cannot be folded into the input (multiplicative noise; the GRU, whose
reset gate multiplies the recurrent product) or where folding costs more (large layers on a CPU).
Only what must be sequential is in the loop: the input's product is done before it, activation
derivatives before the backward loop, and the recurrent weight's gradient in one product after it
instead of one per step. The readable form is :meth:`.Cell.scan`, which also gives the second
derivatives.

All noise met here is affine in the state: z_t = h_t · m_t + a_t, either of m and a absent.

Each scan is a ``torch.autograd.Function`` of the same arguments: the cell, seven tensors (gates,
z0, c0, w_hh, b_hh, mult, add), and whether there will be a backward pass. The tensors that its
backward pass needs follow its outputs. Under ``torch.func``, whose ``vmap`` has no rule for buffers
that are filled in place, the readable form runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, TorchCell, Weights
from noisin_pyro.kernels.mapped import backward_is_mapped

__all__ = [
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
    """Runs a cell's ``torch.autograd.Function``; the arguments are those of :meth:`.Cell.scan`.

    The recurrence runs in the weights' dtype, under autocast too, because its rounding adds up
    over steps.

    Args:
        function: the ``torch.autograd.Function``.
        reads_bias: whether the recurrent bias is not yet in ``gates``.
        readable: the same in plain torch.
    """
    w_hh, b_hh = weights.w_hh, weights.b_hh if reads_bias else None
    gates, state = gates.contiguous(), tuple(part.to(w_hh.dtype) for part in state)
    if torch._C._are_functorch_transforms_active():
        return readable(cell, gates, state, weights, mult, add)
    z0, c0 = state if len(state) > 1 else (state[0], None)
    parts = (gates, z0, c0, w_hh, b_hh, mult, add)
    outputs: State = function.apply(cell, *parts, _has_backward(*parts))
    return outputs[: len(state)]


def _has_backward(*parts: Tensor | None) -> bool:
    """Whether anything will be differentiated."""
    return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)


def workspace(like: Tensor, width: int, keep: bool) -> Tensor:
    """Buffer (T, B, width); one shared row if there is no backward pass."""
    steps, batch, _ = like.shape
    return like.new_empty(steps if keep else 1, batch, width).expand(steps, -1, -1)


def noisy(h: Tensor, t: int, mult: Tensor | None, add: Tensor | None, out: Tensor) -> Tensor:
    """z_t = h m_t + a_t, written into ``out``."""
    if mult is None:
        return out.copy_(h) if add is None else torch.add(h, add[t], out=out)
    torch.mul(h, mult[t], out=out)
    return out if add is None else out.add_(add[t])


def scaled(factor: Tensor, mult: Tensor | None) -> Tensor:
    """∂z/∂h folded into a derivative that multiplies ∂L/∂z."""
    return factor if mult is None else factor.mul_(mult)


def shifted(first: Tensor, rest: Tensor) -> Tensor:
    """The sequence one step earlier: [first, rest_0, ..., rest_{T-2}]."""
    return torch.cat([first.unsqueeze(0), rest[:-1]])


def save(ctx: Any, inputs: Any, outputs: Sequence[Tensor], needed: Sequence[Tensor]) -> None:
    """Keeps for the backward pass the seven tensors and all that the forward pass returned.

    Args:
        ctx: the function's context.
        inputs: its arguments.
        outputs: what its caller wants.
        needed: what only the backward pass needs.
    """
    ctx.cell = inputs[0]
    ctx.mark_non_differentiable(*needed)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[1:8], *outputs, *needed)


def saved(ctx: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The seven tensors, and what the forward pass returned.

    Saved tensors are read once, because activation checkpointing hands them out once.
    """
    tensors = ctx.saved_tensors
    return tensors[:7], tensors[7:]


def twice_differentiable(
    readable: Callable[..., State],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Runs the backward pass of the readable form where that by hand cannot serve.

    That is where a gradient of the gradient is wanted, or where torch maps the backward pass over
    many gradients of the output.

    Args:
        readable: the forward pass in plain torch, :meth:`.Cell.scan` or its like.
    """

    def decorate(by_hand: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(by_hand)
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            differentiated = torch.is_grad_enabled()
            needs_readable = differentiated or backward_is_mapped(*grads)
            if not needs_readable or all(grad is None for grad in grads):
                return by_hand(ctx, *grads)
            inputs, needed = saved(ctx)[0], ctx.needs_input_grad[1:8]
            gates, z0, c0, w_hh, b_hh, mult, add = inputs
            wanted = [part for part, needs in zip(inputs, needed) if needs]
            with torch.enable_grad(), torch.autocast(gates.device.type, enabled=False):
                weights = Weights(w_hh, w_hh, None, b_hh)
                state = (z0,) if c0 is None else (z0, c0)
                outputs = readable(ctx.cell, gates, state, weights, mult, add)
                outs, given = zip(*((o, g) for o, g in zip(outputs, grads) if g is not None))
                found = torch.autograd.grad(
                    outs, wanted, given, create_graph=differentiated, allow_unused=True
                )
            gradients = iter(found)
            return None, *(next(gradients) if needs else None for needs in needed), None

        return backward

    return decorate
