"""Any univariate distribution serves as a base, in any dtype."""

from __future__ import annotations

import math
import re
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td

from noisin_pyro import FAMILIES, Additive, Multiplicative, family
from noisin_pyro.noise.moments import bounds
from noisin_pyro.noise.moved import moved, tensors
from tests.noise.bases import INF, LIKEWISE, SPREAD, f64, logistic_recipe, mixture, states


def test_torchs_own_distributions_serve_as_well() -> None:
    z = Additive(td.Laplace(0.0, 1.0)).distribution(torch.zeros(()), torch.tensor(0.3))
    assert z.log_prob(torch.tensor(0.1)) == Additive(dist.Laplace(0.0, 1.0)).distribution(
        torch.zeros(()), torch.tensor(0.3)
    ).log_prob(torch.tensor(0.1))


def test_a_transformed_base_takes_its_moments_from_the_caller() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "TransformedDistribution() knows no mean and variance of its own; "
            "give them as Additive(base, mean=..., stddev=...)"
        ),
    ):
        Additive(logistic_recipe())
    stddev = 2 * math.pi / math.sqrt(3)
    noise = Additive(logistic_recipe(), mean=0.5, stddev=stddev)
    assert (noise.mean, noise.stddev) == (0.5, stddev)
    distribution = noise.distribution(states(), f64(SPREAD))
    z = states() + 0.3
    expected = LIKEWISE["logistic"](states(), f64(SPREAD)).log_prob(z)
    torch.testing.assert_close(distribution.log_prob(z), expected)
    assert distribution.sample().dtype == torch.float64


def test_a_categorical_base_takes_its_moments_from_the_caller() -> None:
    base = dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))
    with pytest.raises(ValueError, match="knows no mean and variance of its own; give them as Mul"):
        Multiplicative(base)
    stddev = math.sqrt(0.3 + 2.0 - 1.69)
    distribution = Multiplicative(base, mean=1.3, stddev=stddev).distribution(f64(2.0), f64(SPREAD))
    z = distribution.enumerate_support()
    torch.testing.assert_close(
        z, 2 * (1 + SPREAD * (torch.arange(3.0).double() - 1.3) / stddev), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(
        distribution.log_prob(z).exp(),
        f64(0.2, 0.3, 0.5)[0].new_tensor([0.2, 0.3, 0.5]),
        check_dtype=False,
    )
    assert distribution.sample((3,)).dtype == torch.float64


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_draws_have_the_states_dtype(name: str, dtype: torch.dtype) -> None:
    h = torch.tensor([-0.5, 0.0, 2.0], dtype=dtype)
    for injection in ("additive", "multiplicative"):
        distribution = family(name, injection, 0.5).distribution(h, h.new_tensor(0.5))
        z = distribution.rsample((4,))
        assert z.dtype == dtype and z.shape == (4, 3)
        assert distribution.log_prob(z).isfinite().all()
        assert (
            distribution.standardized.mean.dtype
            == distribution.standardized.variance.dtype
            == dtype
        )


@pytest.mark.parametrize(
    "base",
    [dist.Beta(2.0, 2.0), dist.Gumbel(0.0, 1.0), mixture(), logistic_recipe(), dist.Chi2(3.0)],
    ids=lambda base: type(base).__name__,
)
def test_moving_a_base_moves_all_of_it_and_leaves_the_original(base: Any) -> None:
    before = [tensor.dtype for tensor in tensors(base)]
    other = moved(base, torch.float64, torch.device("cpu"))
    assert other.sample((3,)).dtype == torch.float64
    assert other.log_prob(f64(0.4)).dtype == torch.float64
    assert all(t.dtype == torch.float64 for t in tensors(other) if t.is_floating_point())
    assert [tensor.dtype for tensor in tensors(base)] == before
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = base.sample()
    torch.testing.assert_close(other.log_prob(value).float(), base.log_prob(value).float())


@pytest.mark.parametrize(
    "base, expected",
    [
        (dist.Normal(0.0, 1.0), (-INF, INF)),
        (dist.Gamma(1.0, 1.0), (0.0, INF)),
        (dist.Uniform(-1.0, 2.0), (-1.0, 2.0)),
        (dist.Bernoulli(0.3), (0.0, 1.0)),
        (dist.Binomial(7, torch.tensor(0.3)), (0.0, 7.0)),
        (
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)),
                dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 6.0])),
            ),
            (0.0, 6.0),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounds(base: Any, expected: tuple[float, float]) -> None:
    assert bounds(base.support) == expected


def test_a_mixture_has_the_density_of_each_of_its_components() -> None:
    """torch's own validation wants a value in the support of all of them."""
    base = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 6.0])),
    )
    noise = Additive(base)
    distribution = noise.standardized(torch.zeros(()))
    value = (torch.tensor([0.5, 5.5, 3.0]) - 3.0) / distribution.std
    expected = torch.tensor([0.5 * distribution.std, 0.5 * distribution.std, 0.0])
    torch.testing.assert_close(distribution.log_prob(value).exp(), expected)


def test_the_base_is_moved_once_for_each_dtype() -> None:
    noise = Additive(dist.Gamma(2.0, 1.0))
    assert noise.standardized(torch.zeros(2)) is noise.standardized(torch.ones(3))
    assert noise.standardized(torch.zeros(2)) is not noise.standardized(torch.zeros(2).double())
