"""Derivatives in forward mode, against backward passes and differences."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp

from noisin_pyro import Additive, Multiplicative, NoisyLSTM
from noisin_pyro.kernels.linear_scan import linear_scan
from noisin_pyro.nn.emissions import LinearCategorical
from tests.helpers import CELLS, LINEAR, make_rnn

NOISES = {
    "none": None,
    "add": Additive(dist.Normal(0.0, 1.0)),
    "mult": Multiplicative(dist.Normal(0.0, 1.0)),
}
T, B, D, H = 5, 2, 2, 3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"
)  # torch's own


def tangent(function: Any, x: Tensor, v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent


@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
def test_of_a_recurrence(cell: str, noise: str, noise_to: Any) -> None:
    rnn = make_rnn(cell, D, H, 2, noise=NOISES[noise], noise_to=noise_to, dtype=torch.float64)
    x, v = torch.randn(2, T, B, D, dtype=torch.float64)
    drawn = rnn.draw_noise(T, B)

    def run(x: Tensor) -> Tensor:
        return rnn(x, epsilon=drawn, lengths=torch.tensor([T, 2]))[0]

    def loss(x: Tensor) -> Tensor:
        return run(x).sin().sum()

    jacobian = torch.autograd.functional.jacobian(run, x)
    along = jacobian.flatten(3) @ v.flatten()
    torch.testing.assert_close(tangent(run, x, v), along)
    torch.testing.assert_close(jvp(run, (x,), (v,))[1], along)
    torch.testing.assert_close(jacfwd(run)(x), jacobian)
    second, step = hessian(loss)(x), 1e-5 * v
    difference = (grad(loss)(x + step) - grad(loss)(x - step)) / 2e-5
    torch.testing.assert_close(second.flatten(3) @ v.flatten(), difference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(jacfwd(jacfwd(loss))(x), second)


@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
def test_of_a_backward_pass(cell: str) -> None:
    """A backward pass is linear in the gradient that it is given."""
    rnn = make_rnn(cell, D, H, noise=NOISES["mult"], dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    output, (given, v) = rnn(x)[0], torch.randn(2, T, B, H, dtype=torch.float64)

    def back(grad: Tensor) -> Tensor:
        return torch.autograd.grad(output, x, grad, retain_graph=True)[0]

    torch.testing.assert_close(tangent(back, given, v), back(v))


def test_in_single_precision() -> None:
    """In which torch's LSTM has no derivatives in forward mode."""
    lstm, (x, v) = NoisyLSTM(D, H, 2).eval(), torch.randn(2, T, B, D)
    along = torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x).flatten(3) @ v.flatten()
    torch.testing.assert_close(tangent(lambda x: lstm(x)[0], x, v), along)


def test_of_a_scan() -> None:
    parts = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((6, 2), (6, 2), (2,))
    ]
    options: Any = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(linear_scan, parts, **options)
    assert torch.autograd.gradgradcheck(linear_scan, parts, check_fwd_over_rev=True)


def test_of_a_softmax() -> None:
    z, weight, bias, v = (
        torch.randn(*s, dtype=torch.float64) for s in ((4, H), (7, H), (7,), (4, H))
    )
    y = torch.tensor([1, 6, 0, 4])
    weight.requires_grad_()

    def run(z: Tensor) -> Tensor:
        return LinearCategorical(z, weight, bias).log_prob(y)

    jacobian: Any = torch.autograd.functional.jacobian(run, z)
    torch.testing.assert_close(tangent(run, z, v), jacobian.flatten(1) @ v.flatten())
