"""A layer with a linear cell, from its input to its states, in pieces of the sequence.

Over a long sequence the elementwise operations of a layer cost as much as its matrix products,
because their operands do not fit a CPU's cache. So the sequence is cut into pieces that fit, and
each runs through the whole layer before the next: projection, coefficients, noise, scan. The state
is carried from piece to piece. The backward pass runs from the last piece to the first and carries
the gradient of the state. The forward pass saves the gates of each piece, and the backward pass
recomputes the coefficients from them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisin_pyro.kernels.blocked_scan import scan_gradients, scan_into
from noisin_pyro.kernels.mapped import needs_plain_torch
from noisin_pyro.kernels.onednn import linear, outer
from noisin_pyro.kernels.replay import replayed_gradients

if TYPE_CHECKING:
    from noisin_pyro.cells.base import State
    from noisin_pyro.cells.linear import LinearCell, LinearWeights

__all__ = ["run_pieces"]

_PIECE = 1 << 19  # elements of a piece's states
_SHORTEST = 128  # least number of steps in a piece; the scan of fewer steps is slower


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
        cell: the cell that computes a and b.
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
    """The steps of each piece."""
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
        x, z0, w_ih, b_ih, decay, mult, add, z, *gates_of_pieces = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or needs_plain_torch(grad):
            inputs = (x, z0, w_ih, b_ih, decay, mult, add)
            plain = functools.partial(_plain, ctx.cell)
            return None, None, *replayed_gradients(plain, inputs, wanted, [grad])
        to_x, to_z0, to_w, to_b, to_decay, to_mult, to_add = wanted
        dx = torch.empty_like(x) if to_x else None
        dw = torch.zeros_like(w_ih) if to_w else None
        db = torch.zeros_like(b_ih) if to_b else None
        ddecay = torch.zeros_like(decay) if to_decay else None
        dmult, dadd = (grad.new_empty(grad.shape) if to else None for to in (to_mult, to_add))
        carried: Tensor | None = None
        for rows, gates in reversed(list(zip(_pieces(x, z0), gates_of_pieces))):
            weights = ctx.cell.weights(w_ih, b_ih, decay)
            m, n = _at(mult, rows), _at(add, rows)
            a, b, leaves = _coefficients(ctx.cell, gates, weights, m, n, to_decay, to_mult)
            before = z[rows.start - 1] if rows.start else z0
            grad_a, grad_b = scan_gradients(grad[rows], a.detach(), before, z[rows], after=carried)
            carried = a.detach()[0] * grad_b[0]
            gradients = torch.autograd.grad((a, b), list(leaves.values()), (grad_a, grad_b))
            of = dict(zip(leaves, gradients))
            if dx is not None:
                dx[rows] = linear(of["gates"], w_ih.t())
            if dw is not None:
                dw += outer(of["gates"].flatten(0, 1), x[rows].flatten(0, 1))
            if db is not None:
                db += of["gates"].sum((0, 1))
            if ddecay is not None:
                ddecay += of["decay"]
            if dmult is not None:
                dmult[rows] = of["mult"]
            if dadd is not None:
                dadd[rows] = grad_b
        return None, None, dx, carried if to_z0 else None, dw, db, ddecay, dmult, dadd


def _coefficients(
    cell: LinearCell,
    gates: Tensor,
    weights: LinearWeights,
    mult: Tensor | None,
    add: Tensor | None,
    to_decay: bool,
    to_mult: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The noisy coefficients of a piece, differentiable by the gates, the decay and ``mult``.

    Args:
        cell, gates, weights, mult, add: those of :meth:`.LinearCell.noisy`.
        to_decay, to_mult: whether the gradients by the decay and by ``mult`` are needed.

    Returns:
        The coefficients, and the tensors to differentiate them by.
    """
    leaves = {"gates": gates.detach().requires_grad_()}
    if to_decay:
        assert weights.decay is not None
        leaves["decay"] = weights.decay.detach().requires_grad_()
        weights = weights._replace(decay=leaves["decay"])
    if to_mult:
        assert mult is not None
        mult = leaves["mult"] = mult.detach().requires_grad_()
    with torch.enable_grad():
        a, b = cell.noisy(leaves["gates"], weights, mult, add)
    return a, b, leaves


def _plain(
    cell: LinearCell,
    x: Tensor,
    z0: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    decay: Tensor | None,
    mult: Tensor | None,
    add: Tensor | None,
) -> State:
    """:class:`_Pieces` in operations that autograd follows."""
    weights = cell.weights(w_ih, b_ih, decay)
    return cell.scan(cell.project(x, weights), (z0,), weights, mult, add)
