"""A linear layer from its input to its states, piece after piece of the sequence.

Over a long sequence, what a layer computes between two tensors of its size costs as much as the
products do, because each of them leaves the CPU's cache. So pieces that fit the cache run through
all of it, one after the other with the state carried: projection, coefficients, noise, scan. The
backward pass takes the pieces from the last to the first, with the state's gradient carried. Of
each piece the gates are kept, and the coefficients computed again from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisin_pyro.kernels.blocked_scan import scan_gradients, scan_into
from noisin_pyro.kernels.mapped import backward_is_mapped
from noisin_pyro.kernels.onednn import linear, outer

if TYPE_CHECKING:
    from noisin_pyro.cells.linear import LinearCell, LinearWeights

__all__ = ["run_pieces"]

_PIECE = 1 << 19  # numbers per tensor of a piece
_SHORTEST = 128  # steps of a piece; with fewer the scan itself costs more


def run_pieces(
    cell: LinearCell,
    x: Tensor,
    z0: Tensor,
    weights: LinearWeights,
    mult: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """z_t = m_t (a_t z_{t-1} + b_t) + n_t, with derivatives of any order.

    Args:
        cell: whose coefficients a and b are.
        x: the input, with shape (T, B, I).
        z0: the state before the first step, with shape (B, H).
        weights: the layer's weights.
        mult: m, with shape (T, B, H), or None for 1.
        add: n, with shape (T, B, H), or None for 0.

    Returns:
        z, with shape (T, B, H).
    """
    parts = (x, z0, *weights, mult, add)
    keep = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)
    return _Pieces.apply(cell, keep, *parts)  # type: ignore[no-any-return, no-untyped-call]


def _pieces(x: Tensor, z0: Tensor) -> Iterator[slice]:
    size = max(_SHORTEST, _PIECE // max(z0.numel(), 1))
    return (slice(start, min(start + size, len(x))) for start in range(0, len(x), size))


def _at(part: Tensor | None, rows: slice) -> Tensor | None:
    return None if part is None else part[rows]


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: LinearCell,
        keep: bool,
        x: Tensor,
        z0: Tensor,
        w_ih: Tensor,
        b_ih: Tensor | None,
        decay: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
    ) -> Tensor:
        weights = cell.weights(w_ih, b_ih, decay)
        z = z0.new_empty(len(x), *z0.shape)
        state, kept = z0, []
        for rows in _pieces(x, z0):
            gates = cell.project(x[rows], weights)
            a, b = cell.noisy(gates, weights, _at(mult, rows), _at(add, rows))
            scan_into(a, b, state, z[rows])
            state = z[rows.stop - 1]
            kept += [gates] if keep else []
        ctx.cell = cell
        ctx.save_for_backward(x, z0, w_ih, b_ih, decay, mult, add, z, *kept)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, z0, w_ih, b_ih, decay, mult, add, z, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or backward_is_mapped(grad):
            inputs = (x, z0, w_ih, b_ih, decay, mult, add)
            return None, None, *_differentiable_gradients(ctx.cell, inputs, wanted, grad)
        to_x, to_z0, to_w, to_b, to_decay, to_mult, to_add = wanted
        dx = torch.empty_like(x) if to_x else None
        dw = torch.zeros_like(w_ih) if to_w else None
        db = torch.zeros_like(b_ih) if to_b else None
        ddecay = torch.zeros_like(decay) if to_decay else None
        dmult, dadd = (grad.new_empty(grad.shape) if to else None for to in (to_mult, to_add))
        carried: Tensor | None = None
        for rows, gates in reversed(list(zip(_pieces(x, z0), kept))):
            leaves = {"gates": gates.detach().requires_grad_()}
            if to_decay:
                leaves["decay"] = decay.detach().requires_grad_()
            if to_mult:
                leaves["mult"] = mult[rows].detach().requires_grad_()
            weights = ctx.cell.weights(w_ih, b_ih, leaves.get("decay", decay))
            with torch.enable_grad():
                m = leaves.get("mult", _at(mult, rows))
                a, b = ctx.cell.noisy(leaves["gates"], weights, m, _at(add, rows))
            before = z[rows.start - 1] if rows.start else z0
            da, db_t = scan_gradients(grad[rows], a.detach(), before, z[rows], after=carried)
            carried = a.detach()[0] * db_t[0]
            found = torch.autograd.grad((a, b), list(leaves.values()), (da, db_t))
            gradients = dict(zip(leaves, found))
            dgates = gradients["gates"]
            if dx is not None:
                dx[rows] = linear(dgates, w_ih.t())
            if dw is not None:
                dw += outer(dgates.flatten(0, 1), x[rows].flatten(0, 1))
            if db is not None:
                db += dgates.sum((0, 1))
            if ddecay is not None:
                ddecay += gradients["decay"]
            if dmult is not None:
                dmult[rows] = gradients["mult"]
            if dadd is not None:
                dadd[rows] = db_t
        return None, None, dx, carried if to_z0 else None, dw, db, ddecay, dmult, dadd


def _differentiable_gradients(cell: LinearCell, inputs: Any, wanted: Any, grad: Tensor) -> Any:
    """The gradients by torch, with derivatives if these are wanted, also for a mapped ``grad``."""
    differentiated = torch.is_grad_enabled()
    x, z0, w_ih, b_ih, decay, mult, add = inputs
    weights = cell.weights(w_ih, b_ih, decay)
    leaves = [part for part, to in zip(inputs, wanted) if to]
    with torch.enable_grad():
        (z,) = cell.scan(cell.project(x, weights), (z0,), weights, mult, add)
        found = iter(torch.autograd.grad(z, leaves, grad, create_graph=differentiated))
    return [next(found) if to else None for to in wanted]
