"""Antithetic partners: the same distribution, and opposite."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import (
    FAMILIES,
    Additive,
    LanguageModel,
    MeanParameterized,
    Multiplicative,
    NoisyLSTM,
    NoisyRNN,
)
from noisin_pyro.infer.antithetic import antithetic_noise, check_antithetic
from noisin_pyro.noise.reflection import is_symmetric, reflect

DOUBLE = torch.zeros((), dtype=torch.float64)
#: Two uniforms, between which the mean lies.
GAP = dist.MixtureSameFamily(
    dist.Categorical(torch.ones(2)),
    dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 6.0])),
)
SYMMETRIC = {"gaussian", "laplace", "logistic", "beta", "bernoulli", "uniform"}
BY_ICDF = {"gumbel", "exponential", "lognormal"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_counts_as_symmetric_if_its_density_is(name: str) -> None:
    noise = Additive(FAMILIES[name](1.0))
    epsilon = noise.standardized(DOUBLE)
    x = epsilon.expand((200,)).sample()
    log_prob = epsilon.rounded_log_prob
    equal = torch.allclose(log_prob(x, 1.0), log_prob(-x, 1.0), rtol=1e-5, atol=1e-5)
    assert is_symmetric(noise.base) == equal == (name in SYMMETRIC)


@pytest.mark.parametrize(
    "base", [dist.Beta(2.0, 3.0), dist.Bernoulli(0.8), dist.Binomial(4, torch.tensor(0.3))], ids=str
)
def test_parameters_decide_the_symmetry_of_some(base: Any) -> None:
    assert not is_symmetric(base)


@pytest.mark.parametrize("name", sorted(SYMMETRIC | BY_ICDF))
def test_a_partner_has_the_same_distribution(name: str) -> None:
    """F(ε) + F(ε') = 1 for a continuous ε, and the partner of the partner is the draw itself."""
    noise = Additive(FAMILIES[name](1.0))
    epsilon = noise.standardized(DOUBLE).expand((500,)).sample()
    partner = reflect(noise, epsilon)
    torch.testing.assert_close(reflect(noise, partner), epsilon, rtol=1e-6, atol=1e-6)
    assert torch.corrcoef(torch.stack([epsilon, partner]))[0, 1] < -0.5
    if name == "bernoulli":
        assert set(partner.tolist()) == {-1.0, 1.0}
    elif name != "beta":  # whose base knows no distribution function
        base = noise.base
        u, v = (base.cdf(x * noise.stddev + noise.mean) for x in (epsilon, partner))
        torch.testing.assert_close(u + v, torch.ones_like(u), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("widest", [torch.float64, torch.float32])
def test_a_partner_is_finite_at_the_end_of_the_support(
    widest: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a device without double precision."""
    monkeypatch.setattr("noisin_pyro.noise.reflection.widest", lambda device: widest)
    noise = Additive(dist.Exponential(1.0))
    assert reflect(noise, torch.tensor([-1.0, 200.0])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(BY_ICDF))
def test_partners_in_half_precision_have_the_same_variance(name: str, dtype: torch.dtype) -> None:
    """Many draws of an exponential round to its end, whose partner would be 35 away.

    The standard error of a variance of 100,000 exponential draws is 0.009.
    """
    noise = Additive(FAMILIES[name](1.0))
    epsilon = noise.standardized(torch.zeros((), dtype=dtype)).expand((100_000,)).sample()
    partner = reflect(noise, epsilon).double()
    assert abs(partner.mean()) < 0.02 and abs(partner.var() - 1) < 0.06


def test_halves_are_pairs_in_every_layer_and_in_the_input() -> None:
    noise = [Multiplicative(dist.Gumbel(0.0, 1.0)), None, Additive(dist.Laplace(0.0, 1.0))]
    rnn = NoisyLSTM(3, 4, 3, noise=noise, spread=0.5)
    model = LanguageModel(7, rnn, input_noise=Additive(dist.Exponential(1.0)))
    torch.manual_seed(1)
    drawn = antithetic_noise(model, 5, 6)
    torch.manual_seed(1)
    half = model.draw_noise(5, 3)
    parts = [(model.input_noise, drawn.input, half.input), *zip(noise, drawn.rnn, half.rnn)]
    for one, both, first in parts:
        if one is None:
            assert both is None
            continue
        assert torch.equal(both[:, :3], first)
        torch.testing.assert_close(both[:, 3:], reflect(one, first))


def lstm(**options: Any) -> LanguageModel:
    return LanguageModel(7, NoisyLSTM(3, 4, spread=0.5, **options))


@pytest.mark.parametrize(
    ("model", "samples", "message"),
    [
        (lstm(noise=Additive(dist.Normal(0.0, 1.0))), 3, "even and at least 2, got 3"),
        (lstm(noise=Additive(dist.Normal(0.0, 1.0))), 0, "even and at least 2, got 0"),
        (lstm(noise=Additive(dist.Gamma(2.0, 1.0))), 2, r"got Gamma\(.*, which has neither"),
        (lstm(noise=Additive(GAP)), 2, r"got MixtureSameFamily\([^;]*, which has neither"),
        (lstm(noise=Additive(dist.Bernoulli(0.8))), 2, r"got Bernoulli\(.*, which has neither"),
        (
            lstm(noise=Additive(dist.Normal(0.0, 1.0)), sites="timestep"),
            2,
            "sites='sequence'",
        ),
        (
            LanguageModel(
                7,
                NoisyRNN(
                    3,
                    4,
                    nonlinearity="sigmoid",
                    noise=MeanParameterized(lambda m, s: dist.Beta(m / s**2, (1 - m) / s**2)),
                ),
            ),
            2,
            "no ε to reflect",
        ),
    ],
)
def test_refusals(model: LanguageModel, samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_antithetic(model, samples)
