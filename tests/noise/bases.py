"""The base distributions that the tests of this folder use, each with SciPy's account of it.

The bases hold float64 parameters, so that what should be exact is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.moments import moments

INF = math.inf
LEVEL = 1e-7  # of one comparison
SPREAD = 0.6
STATES = (-1.5, -0.2, 0.0, 0.7, 3.0)


def f64(*values: float) -> Any:
    numbers = [torch.tensor(value, dtype=torch.float64) for value in values]
    return numbers[0] if len(numbers) == 1 else numbers


class Mixture:
    """0.3 N(−2, 0.5²) + 0.7 N(1, 1²), with the part of SciPy's interface used here."""

    parts = ((0.3, stats.norm(-2.0, 0.5)), (0.7, stats.norm(1.0, 1.0)))

    def pdf(self, x: Any) -> Any:
        return sum(weight * part.pdf(x) for weight, part in self.parts)

    def logpdf(self, x: Any) -> Any:
        return np.log(self.pdf(x))

    def cdf(self, x: Any) -> Any:
        return sum(weight * part.cdf(x) for weight, part in self.parts)

    def moment(self, order: int) -> float:
        return float(sum(weight * part.moment(order) for weight, part in self.parts))

    def mean(self) -> float:
        return self.moment(1)

    def std(self) -> float:
        return math.sqrt(self.moment(2) - self.moment(1) ** 2)


def mixture() -> Any:
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    stddevs = torch.tensor([0.5, 1.0], dtype=torch.float64)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, stddevs))


#: The base, and an account of it that owes nothing to torch.
BASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "normal": (lambda: dist.Normal(*f64(0.4, 1.7)), stats.norm(0.4, 1.7)),
    "laplace": (lambda: dist.Laplace(*f64(-1.0, 0.8)), stats.laplace(-1.0, 0.8)),
    "logistic": (lambda: dist.Logistic(*f64(0.3, 2.0)), stats.logistic(0.3, 2.0)),
    "gumbel": (lambda: dist.Gumbel(*f64(1.0, 0.7)), stats.gumbel_r(1.0, 0.7)),
    "gamma": (lambda: dist.Gamma(*f64(2.5, 3.0)), stats.gamma(2.5, scale=1 / 3)),
    "beta": (lambda: dist.Beta(*f64(2.0, 3.5)), stats.beta(2.0, 3.5)),
    "bernoulli": (lambda: dist.Bernoulli(f64(0.8)), stats.bernoulli(0.8)),
    "poisson": (lambda: dist.Poisson(f64(1.3)), stats.poisson(1.3)),
    "exponential": (lambda: dist.Exponential(f64(2.0)), stats.expon(scale=0.5)),
    "uniform": (lambda: dist.Uniform(*f64(-1.0, 4.0)), stats.uniform(-1.0, 5.0)),
    "chi2": (lambda: dist.Chi2(f64(5.0)), stats.chi2(5.0)),
    "lognormal": (lambda: dist.LogNormal(*f64(0.2, 0.5)), stats.lognorm(0.5, scale=math.exp(0.2))),
    "mixture": (mixture, Mixture()),
}
DISCRETE = ("bernoulli", "poisson")
KINDS = (Additive, Multiplicative)
each_base = pytest.mark.parametrize("name", BASES)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def states() -> Tensor:
    return torch.tensor(STATES, dtype=torch.float64)


def signed_spread(kind: type[Noise], h: Tensor) -> Tensor:
    return torch.full_like(h, SPREAD) if kind is Additive else SPREAD * h


def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Points ε and weights whose weighted sum integrates against p(ε), by SciPy's μ and σ.

    The lattice itself if the base is discrete; otherwise Gauss and Legendre's 20 points in each
    of some 140 panels, which begin and end at the edges of the support and meet where Laplace's
    density has its kink, and reach far into the tail of the log-normal.
    """
    reference = BASES[name][1]
    mean, stddev = float(reference.mean()), float(reference.std())
    if name in DISCRETE:
        x = np.arange(2.0 if name == "bernoulli" else 60.0)
        weight = np.ones_like(x)
    else:
        low, high = (-INF, INF) if name == "mixture" else reference.support()
        low, end = max(low, mean - 30 * stddev), min(high, mean + 20 * stddev)
        tail: Any = mean + stddev * np.geomspace(20, 200, 21)[1:] if end < high else []
        edges = np.concatenate([np.linspace(low, mean, 61), np.linspace(mean, end, 61)[1:], tail])
        node, node_weight = np.polynomial.legendre.leggauss(20)
        half = np.diff(edges)[:, None] / 2
        x = (edges[:-1, None] + half * (node + 1)).ravel()
        weight = (half * node_weight).ravel() / stddev
    return torch.from_numpy((x - mean) / stddev), torch.from_numpy(weight)


E = 0.57721566490153286
LIKEWISE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "normal": lambda h, s: dist.Normal(h, s),
    "laplace": lambda h, s: dist.Laplace(h, s / math.sqrt(2)),
    "logistic": lambda h, s: dist.Logistic(h, s * math.sqrt(3) / math.pi),
    "gumbel": lambda h, s: dist.Gumbel(
        h - s * E * math.sqrt(6) / math.pi, s * math.sqrt(6) / math.pi
    ),
    "uniform": lambda h, s: dist.Uniform(h - s * math.sqrt(3), h + s * math.sqrt(3)),
}


def standard(name: str) -> tuple[Any, float, float]:
    base = BASES[name][0]()
    return base, *moments(base)


def logistic_recipe() -> Any:
    """The logistic distribution as torch's documentation builds it; it knows no moments."""
    return td.TransformedDistribution(
        td.Uniform(0.0, 1.0), [td.SigmoidTransform().inv, td.AffineTransform(0.5, 2.0)]
    )
