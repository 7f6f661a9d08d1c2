"""Where the NOISIN objective is largest at γ = 0, and where it is not.

Both signs of every ε are enumerated, so nothing here is random but some weights.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    BernoulliEmission,
    Multiplicative,
    NoisyRNN,
    SequenceModel,
    family,
)
from tests.helpers import set_parameters

SPREADS = (0.1, 0.5, 1.0, 2.0)


def build(layers: int, units: int, noise: Any = None, noise_to: Any = "output") -> Any:
    noise = Additive(dist.Bernoulli(0.5)) if noise is None else noise
    rnn = NoisyRNN(1, units, layers, bias=False, noise=noise, noise_to=noise_to)
    return SequenceModel(nn.Identity(), rnn, BernoulliEmission(units, 1)).double()


@torch.no_grad()
def objective(model: Any, spread: float, x: Tensor, y: Tensor) -> float:
    """E [log p(y | z)] over all signs of ε; γ = 0 is the mean path."""
    if spread == 0:
        emitted, _ = model.predict(x, sample=False)
        return float(emitted.log_prob(y).sum())
    rnn, steps = model.rnn, len(x)
    rnn.spread = spread
    shape = (-1, rnn.num_layers, steps, rnn.hidden_size)
    signs = itertools.product([-1.0, 1.0], repeat=rnn.num_layers * steps * rnn.hidden_size)
    epsilon = torch.tensor(list(signs), dtype=torch.float64).view(shape)
    paths = len(epsilon)
    drawn = model.draw_noise(steps, paths)
    signs_of = [one.movedim(0, 1) for one in epsilon.unbind(1)]
    layers = [None if noise is None else one for noise, one in zip(rnn.noise, signs_of)]
    drawn = drawn._replace(rnn=layers)
    emitted, _ = model.predict(x.expand(-1, paths, -1), drawn=drawn)
    return float(emitted.log_prob(y.expand(-1, paths, -1)).sum() / paths)


@pytest.mark.parametrize("kind", [Additive, Multiplicative])
@pytest.mark.parametrize("seed", range(5))
def test_one_layer_with_noise_on_the_output_is_best_without(kind: Any, seed: int) -> None:
    """For any weights, by Jensen's inequality: log p(y | z) is concave in z."""
    model = build(1, 2, kind(dist.Bernoulli(0.5)))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator).double()
    x = torch.randn(3, 1, 1, generator=generator).double()
    y = (torch.rand(3, 1, 1, generator=generator) < 0.5).double()
    values = [objective(model, spread, x, y) for spread in (0.0, *SPREADS)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]


def test_two_layers_can_be_best_with_noise() -> None:
    """Weights that are wrong and sure of it: noise below makes the upper layer less sure.

    The upper state is near −1 and the observation says +1. log p(y | z) is concave in the upper
    layer's z, but not in the lower layer's, which it reads through a tanh.
    """
    model = build(2, 1, [Additive(dist.Bernoulli(0.5)), None])
    set_parameters(model.rnn, {"weight_ih_l0": [[-1.0]], "weight_ih_l1": [[3.0]]})
    set_parameters(model.emission, {"weight": [[4.0]], "bias": [0.0]})
    x, y = torch.ones(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    values = [objective(model, spread, x, y) for spread in (0.0, 0.5, 2.0)]
    assert values[0] < values[1] < values[2]
    assert values[2] - values[0] > 1.0
    both = build(2, 1)  # with noise in the upper layer too
    both.load_state_dict(model.state_dict())
    values = [objective(both, spread, x, y) for spread in (0.0, 0.5, 2.0)]
    assert values[0] < values[1]


def test_one_layer_whose_recurrence_is_noisy_can_be_best_with_noise() -> None:
    """The noise of the first step is read through the tanh of the second."""
    model = build(1, 1, noise_to="recurrence")
    set_parameters(model.rnn, {"weight_ih_l0": [[-1.0]], "weight_hh_l0": [[3.0]]})
    set_parameters(model.emission, {"weight": [[4.0]], "bias": [0.0]})
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1)
    y = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    assert objective(model, 2.0, x, y) > objective(model, 0.0, x, y) + 1.0


@pytest.mark.parametrize("spread", [0.25, 0.5, 1.0])
def test_bernoulli_noise_is_dropout_at_the_spread_it_was_built_for(spread: float) -> None:
    """Away from it the smaller value is h (1 − γ/γ₀), which is not 0."""
    noise = family("bernoulli", "multiplicative", 0.5)
    h = torch.tensor(3.0, dtype=torch.float64)
    values = noise.distribution(h, torch.tensor(spread).double()).enumerate_support()
    assert float(values.min()) == pytest.approx(3.0 * (1 - spread / 0.5), abs=1e-6)
    assert (abs(float(values.min())) < 1e-6) == (spread == 0.5)
