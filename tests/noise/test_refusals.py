"""Bases, moments and names that cannot be: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import math
import re
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, family
from tests.noise.bases import INF, each_kind, logistic_recipe


@each_kind
@pytest.mark.parametrize(
    "base, error, message",
    [
        (
            "normal",
            TypeError,
            "{} needs a distribution such as dist.Normal(0.0, 1.0), got 'normal'",
        ),
        (
            dist.Normal,
            TypeError,
            "{} needs a distribution such as dist.Normal(0.0, 1.0), got <class",
        ),
        (
            dist.Cauchy(0.0, 1.0),
            ValueError,
            "{} needs a base with finite mean and a finite, positive variance, got "
            "Cauchy(loc: 0.0, scale: 1.0) with mean nan and standard deviation inf; "
            "choose another base",
        ),
        (
            dist.StudentT(1.5),
            ValueError,
            "with mean 0.0 and standard deviation inf; choose another base",
        ),
        (
            dist.Delta(torch.tensor(1.0)),
            ValueError,
            "with mean 1.0 and standard deviation 0.0; choose another base",
        ),
        (
            dist.Normal(torch.zeros(3), 1.0),
            ValueError,
            "{} needs a univariate base, got Normal(loc: torch.Size([3]), scale: torch.Size([3])) "
            "with batch shape (3,) and event shape (); give scalar parameters, one draw is made "
            "per hidden unit",
        ),
        (
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            ValueError,
            "with batch shape () and event shape (2,); give scalar parameters",
        ),
        (
            dist.Normal(torch.zeros((), requires_grad=True), 1.0),
            ValueError,
            "the base of {} must carry no parameter, got Normal(loc: 0.0, scale: 1.0) with one "
            "that requires a gradient; learn the RNN's spread instead",
        ),
        (
            dist.Beta(torch.ones((), requires_grad=True), 1.0),
            ValueError,
            "the base of {} must carry no parameter",
        ),
        (
            dist.VonMises(0.0, 1.0),
            ValueError,
            "knows no mean and variance of its own; give them as {}(base, mean=..., stddev=...)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_base_that_cannot_be_standardised(
    kind: Any, base: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message.format(kind.__name__))):
        kind(base)


@pytest.mark.parametrize("given", [{}, {"stddev": 1.0}, {"mean": 3.0, "stddev": 1.0}])
@pytest.mark.parametrize(
    "base",
    [
        dist.Cauchy(0.0, 1.0),
        dist.StudentT(1.0),
        dist.StudentT(2.0),
        dist.FisherSnedecor(3.0, 1.0),
        dist.FisherSnedecor(3.0, 3.0),
    ],
    ids=str,
)
def test_moments_given_by_hand_do_not_make_them_finite(base: Any, given: dict[str, float]) -> None:
    """torch says of some of these that they have infinite moments, and of some NaN."""
    with pytest.raises(ValueError, match="needs a base with finite mean and a finite"):
        Additive(base, **given)


class WithoutSupport(torch.distributions.Distribution):
    """The least that a distribution of one's own may be thought to need."""

    arg_constraints: dict[str, Any] = {}
    mean, variance = torch.tensor(0.0), torch.tensor(1.0)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        return torch.randn(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return dist.Normal(0.0, 1.0).log_prob(value)


@each_kind
def test_a_base_that_does_not_say_where_it_lies(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"needs a base with a support, got WithoutSupport\(\),"):
        kind(WithoutSupport())


def test_only_the_moment_that_a_base_lacks_is_given() -> None:
    class WithoutMean(dist.Normal):
        @property
        def mean(self) -> torch.Tensor:
            raise NotImplementedError

    noise = Additive(WithoutMean(1.0, 2.0), mean=1.0)
    assert (noise.mean, noise.stddev) == (1.0, 2.0)
    with pytest.raises(ValueError, match="stddev=3.0 contradicts"):
        Additive(WithoutMean(1.0, 2.0), mean=1.0, stddev=3.0)
    with pytest.raises(ValueError, match="knows no mean and variance of its own"):
        Additive(WithoutMean(1.0, 2.0))


@pytest.mark.parametrize("stddev", [0.0, -1.0, INF, math.nan])
def test_a_bad_stddev_by_hand(stddev: float) -> None:
    with pytest.raises(ValueError, match="finite, positive variance|knows no mean and variance"):
        Additive(logistic_recipe(), mean=0.5, stddev=stddev)


def test_a_variance_given_as_a_standard_deviation_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"stddev=4.0 contradicts Normal\(.*\), whose stddev is 2"):
        Additive(dist.Normal(0.0, 2.0), stddev=4.0)
    assert Additive(dist.Normal(0.0, 2.0), mean=1e-6, stddev=2.00001).stddev == 2.0
    with pytest.raises(ValueError, match="mean=0.01 contradicts"):
        Additive(dist.Normal(0.0, 2.0), mean=0.01)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError,
        match="unknown noise 'gausian'; the known ones are gaussian, laplace, logistic, gumbel, "
        "gamma, beta, bernoulli, poisson, exponential, uniform, chi2, lognormal",
    ):
        family("gausian")
    with pytest.raises(
        ValueError, match="unknown injection 'add'; choose additive or multiplicative"
    ):
        family("gaussian", "add")  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [0.0, -0.5, INF, math.nan])
def test_a_family_needs_a_positive_spread(spread: float) -> None:
    message = f"spread must be positive and finite, got {spread}; choose one above 0"
    with pytest.raises(ValueError, match=message):
        family("bernoulli", spread=spread)


@each_kind
def test_a_base_without_numbers(kind: Any) -> None:
    """As it comes about inside ``torch.device("meta")``, where networks are built unfilled."""
    with torch.device("meta"):
        base = dist.Normal(0.0, 1.0, validate_args=False)
    with pytest.raises(ValueError, match=r"on the device meta, .*; make the noise outside of"):
        kind(base)
