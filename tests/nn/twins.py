"""A noisy RNN and its torch twin with the same weights, and how they are compared."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import Additive, MeanParameterized, Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN
from tests.helpers import flat, probed

D, H, T, B = 3, 5, 6, 4
ADDITIVE = Additive(dist.Normal(0.0, 1.0))
MULTIPLICATIVE = Multiplicative(dist.Gamma(2.0, 1.0))
GAMMA = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / ((m + 0.1) * s**2)))
CELLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tanh": (nn.RNN, NoisyRNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, NoisyRNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, NoisyLSTM, {}),
    "gru": (nn.GRU, NoisyGRU, {}),
}
cells = pytest.mark.parametrize("cell", CELLS)


def twins(cell: str, layers: int = 1, noise: Any = None, spread: Any = 0.5, **options: Any) -> Any:
    """torch's module, and the noisy one with its weights."""
    plain_type, noisy_type, extra = CELLS[cell]
    plain = plain_type(D, H, layers, **extra, **options)
    noisy = noisy_type(D, H, layers, **extra, **options, noise=noise, spread=spread)
    noisy.load_state_dict(plain.state_dict())
    return plain, noisy


def run(rnn: nn.Module, x: Any, state: Any, **options: Any) -> list[Tensor]:
    """Output, final state, and the gradients of a function that reads each of their elements."""
    leaves = [*rnn.parameters(), *flat(state), x]
    leaves = [leaf for leaf in leaves if getattr(leaf, "requires_grad", False)]
    output, final = rnn(x, state, **options)
    output = output if isinstance(output, Tensor) else output.data
    results = [output, *flat(final)]
    grads = torch.autograd.grad(probed(results), leaves, allow_unused=True)
    return results + [g for g in grads if g is not None]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        assert mine.dtype == reference.dtype and torch.equal(mine, reference)
