"""The long short-term memory of Hochreiter and Schmidhuber (1997), the cell of ``torch.nn.LSTM``.

https://doi.org/10.1162/neco.1997.9.8.1735
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, TorchCell, Weights
from noisin_pyro.cells.scan import (
    each_step,
    noisy,
    run,
    save,
    saved,
    scaled,
    shifted,
    twice_differentiable,
    workspace,
)
from noisin_pyro.cells.slopes import sigmoid_slope, tanh_slope
from noisin_pyro.kernels.onednn import outer, small_products
from noisin_pyro.kernels.tanh import by_sigmoid, tanh, to_tanh_
from noisin_pyro.noise.base import Range

__all__ = ["LSTM", "LSTMCell"]

_WIDE = 160  # hidden units above which the scan costs less than folding on AMD and Intel


class LSTMCell(TorchCell):
    """c_t = σ(f) c_{t-1} + σ(i) tanh(g), h_t = σ(o) tanh(c_t).

    (i, f, g, o) = W_ih x_t + b_ih + W_hh z_{t-1} + b_hh. The cell state c has no noise.
    """

    name = "lstm"
    range = Range(-1.0, 1.0)
    kernel = "lstm"
    folds = True

    def state_sizes(self, hidden: int) -> tuple[int, ...]:
        return hidden, hidden

    def step(self, gates: Tensor, state: State, weights: Weights) -> State:
        z, c = state
        i, f, g, o = (gates + F.linear(z, weights.w_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def scan(
        self,
        gates: Tensor,
        state: State,
        weights: Weights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        return run(_Scan, self, gates, state, weights, mult, add)

    def folding_pays(self, rows: int, hidden: int) -> bool:
        return hidden < _WIDE


LSTM = LSTMCell()


def _by_one_sigmoid_(a: Tensor, g: Tensor) -> None:
    """σ of i, f and o and tanh of g, in place, with one σ of all.

    Args:
        a: the gates before their nonlinearities, with shape (B, 4H).
        g: the view of g in ``a``, with shape (B, H).
    """
    torch.add(g, g, out=g)
    a.sigmoid_()
    to_tanh_(g)


def _each_(a: Tensor, g: Tensor) -> None:
    """:func:`_by_one_sigmoid_` with torch's own tanh."""
    a[:, : 2 * g.shape[-1]].sigmoid_()
    a[:, 3 * g.shape[-1] :].sigmoid_()
    g.tanh_()


class _Scan(torch.autograd.Function):
    """:meth:`LSTMCell.scan` with a hand-written backward pass (arguments: :mod:`.scan`)."""

    @staticmethod
    def forward(
        cell: TorchCell,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert c0 is not None
        steps, batch, width = gates.shape
        hidden = width // 4
        act = workspace(gates, width, keep)  # σ(i), σ(f), tanh(g), σ(o)
        tanh_c = workspace(gates, hidden, keep)
        c, z = (gates.new_empty(steps, batch, hidden) for _ in range(2))
        h = gates.new_empty(batch, hidden)
        z_prev, c_prev = z0, c0
        product = small_products(w_hh, batch, steps)
        activate_ = _by_one_sigmoid_ if by_sigmoid(gates) else _each_
        parts = (act, *act.chunk(4, -1), tanh_c, c, z)
        for gate, m, plus, a, i, f, g, o, tanh_c_t, c_t, z_t in each_step(gates, mult, add, *parts):
            activate_(product(gate, z_prev, a), g)
            c_prev = torch.mul(f, c_prev, out=c_t).addcmul_(i, g)
            torch.mul(o, tanh(c_t, out=tanh_c_t), out=h)
            z_prev = noisy(h, m, plus, z_t)
        return z, c, act, tanh_c

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, c, act, tanh_c = output
        save(ctx, inputs, (z, c), (act, tanh_c))

    @staticmethod
    @twice_differentiable(Cell.scan)
    def backward(ctx: Any, grad_z: Tensor | None, grad_c: Tensor | None, *_: Any) -> Any:
        (_, z0, c0, w_hh, _, mult, _), (z, c, act, tanh_c) = saved(ctx)
        steps, batch, hidden = c.shape
        grad_z = torch.zeros_like(c) if grad_z is None else grad_z
        i, f, g, o = act.chunk(4, -1)
        # ∂z/∂o, ∂z/∂c and ∂c/∂(i, f, g), with respect to the gates before their nonlinearities
        to_o = scaled(sigmoid_slope(o).mul_(tanh_c), mult)
        to_c = scaled(tanh_slope(tanh_c).mul_(o), mult)
        to_ifg = act.new_empty(steps, batch, 3, hidden)
        to_i, to_f, to_g = to_ifg.unbind(2)
        sigmoid_slope(i, out=to_i).mul_(g)
        sigmoid_slope(f, out=to_f).mul_(shifted(c0, c))
        tanh_slope(g, out=to_g).mul_(i)
        noise_needs = ctx.needs_input_grad[6] or ctx.needs_input_grad[7]
        dz, dgates = workspace(c, hidden, noise_needs), torch.empty_like(act)
        dc = torch.zeros_like(c0)
        product = small_products(w_hh.t(), batch, steps)
        per_gate = dgates.unflatten(-1, (4, hidden))
        parts = (dz, dgates, per_gate[..., :3, :], per_gate[..., 3, :], to_ifg, to_o, to_c, f)
        per_dc, after = dc.unsqueeze(1), None  # after: the next step's dgates
        for grad, grad_c_t, dz_t, dgates_t, difg, do, to_ifg_t, to_o_t, to_c_t, f_t in each_step(
            grad_z, grad_c, *parts, backwards=True
        ):
            dz_t = dz_t.copy_(grad) if after is None else product(grad, after, dz_t)
            dc.addcmul_(dz_t, to_c_t)
            if grad_c_t is not None:
                dc += grad_c_t
            torch.mul(to_ifg_t, per_dc, out=difg)
            torch.mul(dz_t, to_o_t, out=do)
            dc *= f_t
            after = dgates_t
        return (
            None,
            dgates,
            dgates[0] @ w_hh if ctx.needs_input_grad[2] else None,
            dc,
            outer(dgates.flatten(0, 1), shifted(z0, z).flatten(0, 1))
            if ctx.needs_input_grad[4]
            else None,
            None,
            dz * (o * tanh_c) if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )
