"""Many gradients of one output in one backward pass, as ``nn.LSTM`` has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.kernels import linear_softmax
from noisin_pyro.nn.emissions import LinearCategorical
from tests.helpers import CELLS, LINEAR, assert_all_close, make_rnn

NOISES = {kind.__name__: kind(dist.Normal(0.0, 1.0)) for kind in (Additive, Multiplicative)}

# torch's own LSTM warns so under is_grads_batched, and torch's GRU likewise.
slow_in_torch = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def check(y: Tensor, parts: Sequence[Tensor]) -> None:
    """By torch's older vmap, by the newer one, and with a graph, against one gradient at a time."""
    weights = torch.randn(3, *y.shape, dtype=y.dtype)
    each = (torch.autograd.grad(y, parts, weight, retain_graph=True) for weight in weights)
    expected = [torch.stack(part) for part in zip(*each)]
    for graph in (False, True):
        options: Any = {"retain_graph": True, "create_graph": graph}
        found = torch.autograd.grad(y, parts, weights, is_grads_batched=True, **options)
        assert_all_close(found, expected)
    mapped = torch.vmap(lambda weight: torch.autograd.grad(y, parts, weight, retain_graph=True))
    assert_all_close(mapped(weights), expected)


@slow_in_torch
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("cell", "noise_to"),
    [
        *itertools.product([*CELLS, *LINEAR], ["both", "recurrence"]),
        *itertools.product(CELLS, ["weights"]),
    ],
)
def test_of_a_recurrence(cell: str, noise_to: str, noise: str) -> None:
    """The backward passes written by hand fill buffers, into which torch's vmaps cannot write."""
    rnn = make_rnn(cell, 3, 5, noise=NOISES[noise], noise_to=noise_to).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    check(rnn(x)[0], [x, *rnn.parameters()])


@pytest.mark.parametrize("in_parts", [False, True])
def test_of_a_softmax(in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_parts:
        monkeypatch.setattr(linear_softmax, "_LARGE", 8)
        monkeypatch.setattr(linear_softmax, "_PART", 16)
    shapes = ((4, 6), (10, 6), (10,))
    z, v, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    check(LinearCategorical(z, v, b).log_prob(torch.tensor([1, 9, 0, 4])), [z, v, b])
