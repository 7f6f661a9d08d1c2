"""The RNNs that the proofs of equivalence compare: every cell, with every kind of noise."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Learned, Multiplicative
from noisin_pyro.cells.base import Cell
from noisin_pyro.cells.elman import NONLINEARITIES
from noisin_pyro.cells.gru import GRU
from noisin_pyro.cells.lstm import LSTM
from tests.helpers import flat, make_rnn, probed, random_state

CELLS: dict[str, Cell] = {**NONLINEARITIES, "lstm": LSTM, "gru": GRU}
D, H, B = 3, 4, 3
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
BASES = {
    "normal": dist.Normal(0.0, 1.0),
    "gamma": dist.Gamma(2.0, 1.0),
    "bernoulli": dist.Bernoulli(0.7),
}
NOISES = {
    f"{kind.__name__.lower()}-{name}": kind(base)
    for kind, (name, base) in itertools.product((Additive, Multiplicative), BASES.items())
}
cells = pytest.mark.parametrize("cell", CELLS)
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def build(cell: str, layers: int, noise: Any, dtype: torch.dtype, **options: Any) -> Any:
    """An RNN whose layers have spreads of their own, with weights that saturate nothing."""
    spread = [Learned(0.3 + 0.1 * layer) for layer in range(layers)]
    rnn = make_rnn(cell, D, H, layers, dtype=dtype, noise=noise, spread=spread, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if parameter.dim():  # a ReLU layer is kept alive
                parameter.uniform_(0.0 if cell == "relu" and "bias" in name else -0.7, 0.7)
    return rnn


def start(cell: str, layers: int, dtype: torch.dtype, *lead: int) -> Any:
    """A carried state far from zero."""
    return random_state(cell, *lead, layers, B, H, dtype=dtype)


def assert_close(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        scale = max(1.0, float(reference.detach().abs().max()))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance * scale)


def gradients(rnn: Any, outputs: list[Tensor], *leaves: Any) -> list[Tensor]:
    inputs = [*flat(*leaves), *rnn.parameters()]
    return list(torch.autograd.grad(probed(outputs), inputs, retain_graph=True))
