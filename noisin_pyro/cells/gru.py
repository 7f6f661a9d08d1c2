"""The gated recurrent unit of Cho et al. (2014), as ``torch.nn.GRU``.

https://arxiv.org/abs/1406.1078
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.base import Cell, State, TorchCell, Weights
from noisin_pyro.cells.gru_gates import gate_factors, gate_parts, write_gates
from noisin_pyro.cells.gru_reading import ReadingScan
from noisin_pyro.cells.scan import (
    each_step,
    noisy,
    run,
    save,
    saved,
    shifted,
    twice_differentiable,
    workspace,
)
from noisin_pyro.kernels.onednn import linear, outer, small_products
from noisin_pyro.noise.base import Range

__all__ = ["GRU", "GRUCell"]


class GRUCell(TorchCell):
    """h_t = (1 − u) n + u z_{t-1}, with n = tanh(W_in x_t + b_in + r (W_hn z_{t-1} + b_hn)).

    r and u are σ(W_i x_t + b_i + W_h z_{t-1} + b_h), each with its rows of the weights. Since r
    multiplies the recurrent product, noise cannot be folded into the input. h interpolates with the
    noisy z, so it is unbounded if the noise is.
    """

    name = "gru"
    range = Range(-1.0, 1.0)
    kernel = "gru"
    weights_alone = False

    def project(self, x: Tensor, weights: Weights) -> Tensor:
        return linear(x, weights.w_ih, weights.b_ih).to(weights.w_hh.dtype)

    def step(self, gates: Tensor, state: State, weights: Weights) -> State:
        return self.step_reading(gates, state[0], state, weights)

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: Weights) -> State:
        (z,) = state
        r_x, u_x, n_x = gates.chunk(3, -1)
        r_z, u_z, n_z = F.linear(read, weights.w_hh, weights.b_hh).chunk(3, -1)
        r, u = (r_x + r_z).sigmoid(), (u_x + u_z).sigmoid()
        n = (n_x + r * n_z).tanh()
        return (n + u * (z - n),)

    def scan(
        self,
        gates: Tensor,
        state: State,
        weights: Weights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        return run(_Scan, self, gates, state, weights, mult, add, reads_bias=True)

    def scan_reading(
        self,
        gates: Tensor,
        state: State,
        weights: Weights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        return run(
            *(ReadingScan, self, gates, state, weights, mult, add),
            reads_bias=True,
            readable=Cell.scan_reading,
        )


GRU = GRUCell()


class _Scan(torch.autograd.Function):
    """:meth:`GRUCell.scan` with a hand-written backward pass (arguments: :mod:`.scan`)."""

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
        steps, batch, width = gates.shape
        hidden = width // 3
        act = workspace(gates, width, keep)  # σ(r), σ(u), tanh(n)
        n_z, h = (workspace(gates, hidden, keep) for _ in range(2))
        z = gates.new_empty(steps, batch, hidden)
        p = gates.new_empty(batch, width)
        z_prev = z0
        bias = gates.new_zeros(()) if b_hh is None else b_hh
        product = small_products(w_hh, batch, steps)
        p_parts = p.split([2 * hidden, hidden], -1)
        for m, plus, n_z_t, h_t, z_t, *gate in each_step(
            mult, add, n_z, h, z, *gate_parts(gates, act)
        ):
            product(bias, z_prev, p)
            u, n = write_gates(p_parts, n_z_t, gate)
            torch.lerp(n, z_prev, u, out=h_t)  # (1 − u) n + u z
            z_prev = noisy(h_t, m, plus, z_t)
        return z, act, n_z, h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, act, n_z, h = output
        save(ctx, inputs, (z,), (act, n_z, h))

    @staticmethod
    @twice_differentiable(Cell.scan)
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (_, z0, _, w_hh, _, mult, _), (z, act, n_z, h) = saved(ctx)
        grad = torch.zeros_like(h) if grad is None else grad
        steps, batch, hidden = h.shape
        before = shifted(z0, z)
        to_n, factors = gate_factors(act, n_z, before, mult)
        u = act[..., hidden : 2 * hidden]
        carry = u if mult is None else u * mult
        dz, drec = torch.empty_like(h), torch.empty_like(act)
        product = small_products(w_hh.t(), batch, steps)
        parts = (grad, carry, factors, dz, dz.unsqueeze(2), drec, drec.unflatten(-1, (3, hidden)))
        after = None  # the next step's drec, dz and carry
        for grad_t, carry_t, factor, dz_t, per_dz, drec_t, per_gate in each_step(
            *parts, backwards=True
        ):
            if after is None:
                dz_t.copy_(grad_t)
            else:
                product(grad_t, after[0], dz_t).addcmul_(*after[1:])
            torch.mul(factor, per_dz, out=per_gate)
            after = drec_t, dz_t, carry_t
        dgates = torch.cat([drec[..., : 2 * hidden], dz * to_n], -1)
        return (
            None,
            dgates,
            torch.addcmul(drec[0] @ w_hh, dz[0], carry[0]) if ctx.needs_input_grad[2] else None,
            None,
            outer(drec.flatten(0, 1), before.flatten(0, 1)) if ctx.needs_input_grad[4] else None,
            drec.sum((0, 1)) if ctx.needs_input_grad[5] else None,
            dz * h if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )
