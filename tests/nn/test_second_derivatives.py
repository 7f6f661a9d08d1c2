"""Gradients with a graph of their own, where one input of a kernel was computed from another."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.kernels import linear_softmax
from noisin_pyro.nn.emissions import LinearCategorical
from tests.helpers import CELLS, LINEAR, assert_all_close, make_rnn


def check(loss: Any, leaves: list[Any]) -> None:
    """First derivatives against those without a graph, second ones against differences."""
    plain = torch.autograd.grad(loss(), leaves)
    first = torch.autograd.grad(loss(), leaves, create_graph=True)
    assert_all_close(first, plain, 1e-12)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    along = torch.stack([(part * v).sum() for part, v in zip(first, directions)]).sum()
    second = torch.autograd.grad(along, leaves)
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for leaf, v in zip(leaves, directions):
                leaf += step * v
        ends.append(torch.autograd.grad(loss(), leaves))
        with torch.no_grad():
            for leaf, v in zip(leaves, directions):
                leaf -= step * v
    differences = [(plus - minus) / 2e-5 for plus, minus in zip(*ends)]
    for found, difference in zip(second, differences):
        torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "noise_to"),
    [
        *itertools.product([*CELLS, *LINEAR], ["both", "recurrence"]),
        *itertools.product(CELLS, ["weights"]),
    ],
)
def test_of_a_carried_state(cell: str, noise_to: Any) -> None:
    """The weights act on the second window also through the state, which they computed."""
    noise = Multiplicative(dist.Normal(0.0, 1.0))
    rnn = make_rnn(cell, 3, 3, noise=noise, spread=0.3, noise_to=noise_to, dtype=torch.float64)
    x, drawn = torch.randn(5, 2, 3, dtype=torch.float64), rnn.draw_noise(5, 2)

    def loss() -> Any:
        output, state = rnn(x, epsilon=drawn)
        return rnn(output, state, epsilon=drawn)[0].sin().sum()

    check(loss, list(rnn.parameters()))


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "identity"])
@pytest.mark.parametrize("noise", [None, Additive(dist.Normal(0.0, 1.0))], ids=["none", "additive"])
def test_of_what_torchs_kernels_run(cell: str, noise: Any) -> None:
    """On a CPU they have second derivatives; cuDNN's have none."""
    rnn = make_rnn(cell, 3, 3, noise=noise, spread=0.3, noise_to="output", dtype=torch.float64)
    x, drawn = torch.randn(5, 2, 3, dtype=torch.float64), noise and rnn.draw_noise(5, 2)
    check(lambda: rnn(x, epsilon=drawn)[0].sin().sum(), list(rnn.parameters()))


@pytest.mark.parametrize("in_parts", [False, True])
def test_of_a_matrix_shared_with_the_embedding(
    in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_parts:
        monkeypatch.setattr(linear_softmax, "_LARGE", 8)
        monkeypatch.setattr(linear_softmax, "_PART", 16)
    words, target = torch.randint(11, (2, 7))
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)

    def loss() -> Any:
        return LinearCategorical(weight[words].tanh(), weight).log_prob(target).sum()

    check(loss, [weight])
