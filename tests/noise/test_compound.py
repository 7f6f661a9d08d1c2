"""Bases made of others: the density of each part is zero outside its own support."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from noisin_pyro import Additive
from noisin_pyro.noise.compound import base_bounds
from tests.noise.bases import INF, f64, logistic_recipe

FLIP = td.AffineTransform(*f64(1.0, -2.0))  # 1 − 2 x


def mixture(*parts: Any) -> Any:
    """Two parts, the first with weight 0.3."""
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7]).double()), *parts)


def pair(first: float, second: float) -> Tensor:
    return torch.tensor([first, second], dtype=torch.float64)


#: A base, its mean and standard deviation if it implements none, and its bounds.
BASES: dict[str, tuple[Callable[[], Any], dict[str, float], tuple[float, float]]] = {
    "uniforms": (lambda: mixture(dist.Uniform(pair(0, 5), pair(1, 6))), {}, (0, 6)),
    "pareto": (lambda: mixture(dist.Pareto(pair(1, 3), pair(8, 8))), {}, (1, INF)),
    "beta": (
        lambda: mixture(dist.AffineBeta(pair(2, 2), pair(2, 3), pair(0, 4), pair(1, 2))),
        {},
        (0, 6),
    ),
    "exponential": (lambda: mixture(dist.Exponential(pair(1, 9))), {}, (0, INF)),
    "normals": (lambda: mixture(dist.Normal(pair(-3, 3), pair(1, 0.5))), {}, (-INF, INF)),
    "flipped": (
        lambda: td.TransformedDistribution(td.Exponential(f64(1.0)), [FLIP]),
        {"mean": -1.0, "stddev": 2.0},
        (-INF, 1),
    ),
    "flipped mixture": (
        lambda: td.TransformedDistribution(mixture(td.Uniform(pair(0, 5), pair(1, 6))), [FLIP]),
        {"mean": -7.0, "stddev": 2 * math.sqrt(0.21 * 25 + 1 / 12)},
        (-11, 1),
    ),
    "masked": (lambda: dist.Gamma(*f64(2.0, 1.0)).mask(True), {}, (0, INF)),
}


@pytest.mark.parametrize("name", BASES)
def test_the_density_integrates_to_one(name: str) -> None:
    """Pareto, outside its support, has a positive number for log_prob, and AffineBeta NaN."""
    build, given, _ = BASES[name]
    distribution = Additive(build(), **given).standardized(f64(0.0))
    # The middles of the cells of a grid, 30 standard deviations to each side.
    width = 1e-4
    grid = torch.arange(-30.0, 30.0, width, dtype=torch.float64) + width / 2
    distribution._validate_args = False
    assert float(distribution.log_prob(grid).exp().sum()) * width == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("name", BASES)
def test_bounds(name: str) -> None:
    build, _, expected = BASES[name]
    assert base_bounds(build()) == pytest.approx(expected)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_each_draw_has_a_density(name: str, dtype: torch.dtype) -> None:
    """Rounding moves some of them out of their part's support, where it has a gap too."""
    build, given, _ = BASES[name]
    noise = Additive(build(), **given)
    h = torch.full((20_000,), 0.7, dtype=dtype)
    z = noise.distribution(h, h.new_tensor(0.3))
    assert z.log_prob(z.sample()).isfinite().all()
    epsilon = noise.standardized(h).expand([20_000])
    assert epsilon.log_prob(epsilon.sample()).isfinite().all()


def test_what_covers_the_whole_line() -> None:
    """A learned guide corrects such noise alone; torch calls the support of both real."""
    flipped = Additive(BASES["flipped"][0](), mean=-1.0, stddev=2.0).standardized(f64(0.0))
    assert not flipped.unbounded and flipped.support.upper_bound == pytest.approx(1.0)
    logistic = Additive(logistic_recipe(), mean=0.5, stddev=2 * math.pi / math.sqrt(3))
    assert logistic.standardized(f64(0.0)).unbounded


def test_gradients_in_and_beside_a_gap() -> None:
    noise = Additive(mixture(dist.Pareto(pair(1, 3), pair(8, 8))))
    h = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert noise.mean is not None and noise.stddev is not None
    x = torch.tensor([1.5, 2.5, 3.5], dtype=torch.float64)
    z = (x - noise.mean) / noise.stddev
    (slope,) = torch.autograd.grad(noise.distribution(h, f64(1.0)).log_prob(z).sum(), h)
    # d log p / dx of a Pareto is −9/x, and of each part here too; h moves x the other way.
    torch.testing.assert_close(slope, 9 / x * noise.stddev)


def test_probabilities_of_a_discrete_mixture() -> None:
    """BetaBinomial has NaN for a count that one of its parts cannot have."""
    base = mixture(dist.BetaBinomial(pair(2, 2), pair(2, 2), pair(3, 9)))
    distribution = Additive(base).standardized(f64(0.0))
    counts = torch.arange(10, dtype=torch.float64)
    assert float(
        distribution.log_prob((counts - distribution.loc) / distribution.std).exp().sum()
    ) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("base", "given", "message"),
    [
        (dist.Normal(0.0, 1.0).mask(False), {}, r"whose mask removes it; .*without .mask\(False\)"),
        (dist.Normal(0.0, 1.0).mask(False).to_event(0), {}, "whose mask removes it"),
        (
            td.TransformedDistribution(td.Poisson(1.0), [td.AffineTransform(0.0, 2.0)]),
            {"mean": 2.0, "stddev": 2.0},
            "needs a discrete base without transforms, got Transf.*; give the distribution inside",
        ),
        (
            dist.ImproperUniform(dist.constraints.real, (), ()),
            {"mean": 0.0, "stddev": 1.0},
            r"can be sampled, got ImproperUniform\(\), whose sample is not implemented",
        ),
        (
            dist.LogNormalNegativeBinomial(*f64(5.0, 0.0, 0.3)),
            {},
            "can be sampled, got LogNormalNegativeBinomial.*choose another base",
        ),
        (dist.Empirical(torch.ones(3), torch.ones(3)), {"stddev": 1.0}, "contradicts"),
        (
            dist.Empirical(torch.arange(3.0), torch.ones(3)),
            {},
            "whose log_prob does not take several values; fit one to the samples",
        ),
    ],
)
def test_what_has_no_density_or_no_draws(base: Any, given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Additive(base, **given)


def test_why_a_log_prob_fails() -> None:
    class Single(td.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            raise RuntimeError("Double did not match Float\nat a line of torch")

    with pytest.raises(ValueError, match=r"log_prob fails in torch.float64 \(Double did not match"):
        Additive(Single(0.0, 1.0))


@pytest.mark.parametrize("wrapped", [False, True])
def test_making_a_noise_draws_from_no_base_of_the_users(wrapped: bool) -> None:
    """Its draws may be counted, written or replayed."""
    draws: list[Any] = []

    class Counted(dist.Normal):
        def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
            draws.append(sample_shape)
            return super().sample(sample_shape)

    base = Counted(0.0, 1.0)
    noise = Additive(dist.Independent(base, 0) if wrapped else base)
    assert not draws
    noise.distribution(torch.zeros(2), torch.tensor(0.5)).sample()
    assert draws
