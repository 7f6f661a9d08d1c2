"""A GRU with noise on the operand of its recurrent weights alone, as in variational dropout.

    p_t = W_hh (m_t h_{t-1} + a_t) + b_hh,    h_t = (1 − u_t) n_t + u_t h_{t-1}

r, u and n are computed from p_t as in :mod:`.gru`; the update gate u carries the clean h_{t-1}.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisin_pyro.cells.base import Cell, TorchCell
from noisin_pyro.cells.gru_gates import gate_factors, gate_parts, write_gates
from noisin_pyro.cells.scan import (
    each_step,
    noisy,
    save,
    saved,
    shifted,
    twice_differentiable,
    workspace,
)
from noisin_pyro.kernels.onednn import outer, small_products

__all__ = ["ReadingScan"]


class ReadingScan(torch.autograd.Function):
    """:meth:`.Cell.scan_reading` with a hand-written backward pass (arguments: :mod:`.scan`)."""

    @staticmethod
    def forward(
        cell: TorchCell,
        gates: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, width = gates.shape
        hidden = width // 3
        act = workspace(gates, width, keep)  # σ(r), σ(u), tanh(n)
        n_h = workspace(gates, hidden, keep)
        h = gates.new_empty(steps, batch, hidden)
        read, p = gates.new_empty(batch, hidden), gates.new_empty(batch, width)
        h_prev = h0
        bias = gates.new_zeros(()) if b_hh is None else b_hh
        product = small_products(w_hh, batch, steps)
        p_parts = p.split([2 * hidden, hidden], -1)
        for m, plus, n_h_t, h_t, *gate in each_step(mult, add, n_h, h, *gate_parts(gates, act)):
            product(bias, noisy(h_prev, m, plus, read), p)
            u, n = write_gates(p_parts, n_h_t, gate)
            h_prev = torch.lerp(n, h_prev, u, out=h_t)  # (1 − u) n + u h
        return h, act, n_h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, act, n_h = output
        save(ctx, inputs, (h,), (act, n_h))

    @staticmethod
    @twice_differentiable(Cell.scan_reading)
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (_, h0, _, w_hh, _, mult, add), (h, act, n_h) = saved(ctx)
        grad = torch.zeros_like(h) if grad is None else grad
        steps, batch, hidden = h.shape
        before = shifted(h0, h)
        to_n, factors = gate_factors(act, n_h, before)
        u = act[..., hidden : 2 * hidden]
        dh, dread, drec = torch.empty_like(h), torch.empty_like(h), torch.empty_like(act)
        product, zero = small_products(w_hh.t(), batch, steps), h.new_zeros(())
        per_gate = drec.unflatten(-1, (3, hidden))
        parts = (grad, u, mult, factors, dh, dh.unsqueeze(2), drec, per_gate, dread)
        carried = None  # the gradient by h through the next step
        for grad_t, u_t, m, factor, dh_t, per_dh, drec_t, per_gate_t, dread_t in each_step(
            *parts, backwards=True
        ):
            dh_t.copy_(grad_t)
            if carried is not None:
                dh_t += carried
            torch.mul(factor, per_dh, out=per_gate_t)
            product(zero, drec_t, dread_t)
            carried = torch.addcmul(dread_t if m is None else dread_t * m, dh_t, u_t)
        to_w_hh = None
        if ctx.needs_input_grad[4]:
            read = before if mult is None else before * mult
            read = read if add is None else read + add
            to_w_hh = outer(drec.flatten(0, 1), read.flatten(0, 1))
        return (
            None,
            torch.cat([drec[..., : 2 * hidden], dh * to_n], -1),
            carried if ctx.needs_input_grad[2] else None,
            None,
            to_w_hh,
            drec.sum((0, 1)) if ctx.needs_input_grad[5] else None,
            dread * before if ctx.needs_input_grad[6] else None,
            dread if ctx.needs_input_grad[7] else None,
            None,
        )
