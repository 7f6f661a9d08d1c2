"""The simple recurrent network of Elman (1990), the cell of ``torch.nn.RNN``, in four variants.

https://doi.org/10.1207/s15516709cog1402_1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
from noisin_pyro.kernels.fused import fused
from noisin_pyro.kernels.onednn import outer, small_products
from noisin_pyro.kernels.tanh import tanh
from noisin_pyro.noise.base import Range

__all__ = ["NONLINEARITIES", "ElmanCell"]


class ElmanCell(TorchCell):
    """h_t = act(W_ih x_t + b_ih + W_hh z_{t-1} + b_hh).

    Args:
        name: the name of the nonlinearity.
        range: the interval that contains h.
        activation: the function act.
        activation_: act in place, without autograd.
        slope: the derivative of act as a function of h = act(a).
        kernel: the name of torch's fused kernel, None if torch has none.
        folds: whether additive noise can be an extra input of :meth:`folded`.
    """

    def __init__(
        self,
        name: str,
        range: Range,
        activation: Callable[[Tensor], Tensor],
        activation_: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor], Tensor],
        kernel: str | None = None,
        folds: bool = True,
    ) -> None:
        self.name, self.range, self.kernel, self.folds = name, range, kernel, folds
        self.activation, self.activation_, self.slope = activation, activation_, slope

    def step(self, gates: Tensor, state: State, weights: Weights) -> State:
        (z,) = state
        return (self.activation(gates + F.linear(z, weights.w_hh)),)

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
        return False  # torch's kernel takes longer on AMD and Intel


class SigmoidCell(ElmanCell):
    """A sigmoid layer, computed by torch's tanh kernel because torch has no sigmoid kernel.

    σ(a) = (1 + tanh(a/2))/2, so u = 2h − 1 follows

        u_t = tanh(W_ih x_t / 2 + W_hh u_{t-1} / 4 + (b_ih + b_hh + W_hh 1/2) / 2).
    """

    def folded(
        self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        half = weights.w_hh.sum(1) / 4
        halved = [
            weights.w_ih / 2,
            weights.w_hh / 4,
            half if weights.b_ih is None else half + weights.b_ih / 2,
            torch.zeros_like(half) if weights.b_hh is None else weights.b_hh / 2,
        ]
        options = (True, 1, 0.0, False, False)
        u, (u_n,) = fused("rnn_tanh", x, (2 * state[0] - 1,), halved, options, lengths)
        return (1 + u) / 2, ((1 + u_n) / 2,)


class _Scan(torch.autograd.Function):
    """:meth:`ElmanCell.scan` with a hand-written backward pass (arguments: :mod:`.scan`)."""

    @staticmethod
    def forward(
        cell: ElmanCell,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        h, z = workspace(gates, gates.shape[-1], keep), torch.empty_like(gates)
        act, previous = cell.activation_, z0
        product = small_products(w_hh, len(z0), len(gates))
        for gate, m, plus, h_t, z_t in each_step(gates, mult, add, h, z):
            previous = noisy(act(product(gate, previous, h_t)), m, plus, z_t)
        return z, h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, h = output
        save(ctx, inputs, (z,), (h,))

    @staticmethod
    @twice_differentiable(Cell.scan)
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (_, z0, _, w_hh, _, mult, _), (z, h) = saved(ctx)
        grad = torch.zeros_like(h) if grad is None else grad
        slope = scaled(ctx.cell.slope(h), mult)
        noise_needs = ctx.needs_input_grad[6] or ctx.needs_input_grad[7]
        dz, dgates = workspace(h, h.shape[-1], noise_needs), torch.empty_like(h)
        product = small_products(w_hh.t(), len(z0), len(h))
        after = None  # the next step's dgates
        for grad_t, slope_t, dz_t, dgates_t in each_step(grad, slope, dz, dgates, backwards=True):
            dz_t = dz_t.copy_(grad_t) if after is None else product(grad_t, after, dz_t)
            after = torch.mul(dz_t, slope_t, out=dgates_t)
        return (
            None,
            dgates,
            dgates[0] @ w_hh if ctx.needs_input_grad[2] else None,
            None,
            outer(dgates.flatten(0, 1), shifted(z0, z).flatten(0, 1))
            if ctx.needs_input_grad[4]
            else None,
            None,
            dz * h if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )


def _identity(a: Tensor) -> Tensor:
    return a


def _tanh_(a: Tensor) -> Tensor:
    return tanh(a, out=a)


def _relu_slope(h: Tensor) -> Tensor:
    return (h > 0).to(h.dtype)


_INF = float("inf")
_CELLS = (
    ElmanCell("tanh", Range(-1.0, 1.0), torch.tanh, _tanh_, tanh_slope, "rnn_tanh"),
    ElmanCell("relu", Range(0.0, _INF, True), torch.relu, torch.relu_, _relu_slope, "rnn_relu"),
    SigmoidCell("sigmoid", Range(0.0, 1.0), torch.sigmoid, torch.sigmoid_, sigmoid_slope),
    ElmanCell("identity", Range(-_INF, _INF), _identity, _identity, torch.ones_like, folds=False),
)

#: The cells of ``NoisyRNN`` by the name of their nonlinearity.
NONLINEARITIES: Mapping[str, ElmanCell] = MappingProxyType({cell.name: cell for cell in _CELLS})
