"""Antithetic particles in training: the same expectation, and less variance where it is wanted."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor
from torch.testing import assert_close

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
)
from noisin_pyro.noise.reflection import reflect
from tests.helpers import (
    assert_all_close,
    joint_gaussian,
    linear_gaussian,
    random_tokens,
)

NORMAL = Additive(dist.Normal(0.0, 1.0))
NOISES = [Multiplicative(dist.Gumbel(0.0, 1.0)), None, Additive(dist.Laplace(0.0, 1.0))]


def deep() -> LanguageModel:
    """Noise on the input and on two of three layers; one of the three bases is symmetric."""
    rnn = NoisyLSTM(3, 4, 3, noise=NOISES, spread=Learned(0.5))
    return LanguageModel(7, rnn, input_noise=Additive(dist.Exponential(1.0))).double()


def state() -> Any:
    return tuple(torch.rand(3, 2, 4, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 3])], ids=["whole", "padded"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_pair_is_a_draw_and_its_reflection(vectorized: bool, lengths: Any) -> None:
    """Loss and gradients of two particles, against the two passes written out."""
    model, (x, y), start = deep(), random_tokens(7, 5, 2), state()
    pyro.set_rng_seed(4)
    drawn = model.draw_noise(5, 2)
    noises = [model.input_noise, *NOISES]
    other = drawn._replace(
        input=reflect(noises[0], drawn.input),
        rnn=[None if e is None else reflect(n, e) for n, e in zip(NOISES, drawn.rnn)],
    )
    inside = torch.ones(5, 2) if lengths is None else torch.arange(5).unsqueeze(1) < lengths
    log_probs = []
    for one in (drawn, other):
        emitted, _ = model.predict(x, start, lengths, drawn=one)
        log_probs.append((emitted.log_prob(y) * inside).sum())
    by_hand = -(log_probs[0] + log_probs[1]) / 2
    elbo = NoisinELBO(2, vectorize_particles=vectorized, antithetic=True)
    pyro.set_rng_seed(4)
    loss, _ = elbo(model, PriorGuide(model)).with_state(x, y, start, lengths)
    assert_close(loss, by_hand, rtol=1e-12, atol=0)
    leaves = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(one, leaves, materialize_grads=True, allow_unused=True)
        for one in (loss, by_hand)
    )
    assert_all_close(ours, theirs, 1e-10)
    assert abs((log_probs[0] - log_probs[1]).item()) > 1e-3


@pytest.mark.parametrize("vectorized", [False, True])
def test_six_particles_are_three_pairs(vectorized: bool) -> None:
    model, (x, y) = deep(), random_tokens(7, 5, 2)
    elbo = NoisinELBO(6, vectorize_particles=vectorized, antithetic=True)
    traces = list(elbo._get_traces(model, PriorGuide(model), (x, y), {}))
    values = [trace.nodes["rnn.noise_2"]["value"] for trace in traces]
    drawn = values[0].squeeze(0) if vectorized else torch.stack(values)
    assert drawn.shape == (6, 5, 2, 4)
    first, second = (drawn[:3], drawn[3:]) if vectorized else (drawn[::2], drawn[1::2])
    assert torch.equal(first, -second)
    assert len(set(first.flatten().tolist())) == first.numel()


def gradients(model: Any, elbo: NoisinELBO, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """The gradient by weights and γ of each of several draws, with shape (draws, \\*)."""
    objective = elbo(model, PriorGuide(model))
    leaves, rows = list(model.parameters()), []
    for _ in range(draws):
        parts = torch.autograd.grad(objective(x, y), leaves)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def test_the_expected_gradient_is_the_same_and_the_variance_lower() -> None:
    """Against the closed form of a linear Gaussian model, whose expected loss is quadratic.

    The observations lie far above what the noise reaches, so that log p(y | z) is nearly linear in
    ε. Twenty-two statistics; a normal variable lies beyond 6 with probability 2e-9.
    """
    model = linear_gaussian()
    model.rnn.spread = Learned(0.6)
    model.double()
    x = torch.linspace(0.0, 3.0, 5, dtype=torch.float64).sin().view(-1, 1, 1)
    y = torch.full_like(x, 6.0)
    joint = joint_gaussian(model, x)
    variance = (2 * model.emission.log_scale).exp()
    spent = (y.flatten() - joint.mean_y).square() + joint.cov_y.diagonal() - variance
    expected = (0.5 * (2 * torch.pi * variance).log() + 0.5 * spent / variance).sum()
    leaves = list(model.parameters())
    truth = torch.cat([part.flatten() for part in torch.autograd.grad(expected, leaves)])
    pairs = gradients(model, NoisinELBO(2, antithetic=True), x, y, 200)
    independent = gradients(model, NoisinELBO(2), x, y, 200)
    for draws in (pairs, independent):
        # The gradient of what no noise reaches is linear in ε, and so without error in a pair.
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - truth).abs() < 6 * error + 1e-9).all()
    ratio = pairs.var(0).sum() / independent.var(0).sum()
    assert float(ratio) < 0.3


def test_particles_are_carried_in_pairs_through_svi_and_windows() -> None:
    model, (x, y) = deep(), random_tokens(7, 5, 2)
    elbo = NoisinELBO(4, vectorize_particles=True, antithetic=True)
    _, (h, _) = elbo(model, PriorGuide(model)).with_state(x, y)
    assert h.shape == (4, 3, 2, 4)
    svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.01}), elbo)
    assert svi.step(x, y) > 0


def test_refusals() -> None:
    for particles in (1, 3):
        with pytest.raises(ValueError, match=f"num_particles must be even, got {particles}"):
            NoisinELBO(particles, antithetic=True)
    beta = MeanParameterized(lambda m, s: dist.Beta(m / s**2, (1 - m) / s**2))
    for options, message in (
        ({"noise": Additive(dist.Gamma(2.0, 1.0))}, r"got Gamma\(.*, which has neither"),
        ({"noise": beta, "nonlinearity": "sigmoid"}, "no ε to reflect"),
        ({"noise": NORMAL, "sites": "timestep"}, "sites='sequence'"),
        ({"noise": NORMAL, "sites": None}, "got an RNN with sites=None; use sites='sequence'"),
    ):
        model = LanguageModel(7, NoisyRNN(3, 4, **options))
        NoisinELBO(2)(model, PriorGuide(model))
        with pytest.raises(ValueError, match=message):
            NoisinELBO(2, antithetic=True)(model, PriorGuide(model))
