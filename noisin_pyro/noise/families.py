"""Noises by the name of their base distribution, for the command line and quick experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import pyro.distributions as dist
from torch.distributions import Distribution

from noisin_pyro.noise.affine import Additive, Multiplicative

__all__ = ["FAMILIES", "family"]

#: For each name of :func:`family`, the function from the spread γ to the base distribution.
FAMILIES: Mapping[str, Callable[[float], Distribution]] = MappingProxyType(
    {
        "gaussian": lambda spread: dist.Normal(0.0, 1.0),
        "laplace": lambda spread: dist.Laplace(0.0, 1.0),
        "logistic": lambda spread: dist.Logistic(0.0, 1.0),
        "gumbel": lambda spread: dist.Gumbel(0.0, 1.0),
        "gamma": lambda spread: dist.Gamma(2.0, 1.0),
        "beta": lambda spread: dist.Beta(2.0, 2.0),
        "bernoulli": lambda spread: dist.Bernoulli(1.0 / (1.0 + spread * spread)),
        "poisson": lambda spread: dist.Poisson(1.0),
        "exponential": lambda spread: dist.Exponential(1.0),
        "uniform": lambda spread: dist.Uniform(-1.0, 1.0),
        "chi2": lambda spread: dist.Chi2(4.0),
        "lognormal": lambda spread: dist.LogNormal(0.0, 0.5),
    }
)


def family(
    name: str,
    injection: Literal["additive", "multiplicative"] = "additive",
    spread: float = 1.0,
) -> Additive | Multiplicative:
    """A noise by the name of its base distribution.

    In every family ε has mean 0 and variance 1, so that γ is the standard deviation of additive
    noise, or the coefficient of variation of multiplicative noise. Families differ in the shape of
    ε:

    ===============  ==========================  ============================================
    name             base                        shape of ε
    ===============  ==========================  ============================================
    ``gaussian``     Normal(0, 1)                symmetric
    ``laplace``      Laplace(0, 1)               symmetric, exponential tails
    ``logistic``     Logistic(0, 1)              symmetric, tails between the two
    ``gumbel``       Gumbel(0, 1)                skewed to the right, on the whole line
    ``gamma``        Gamma(2, 1)                 skewed to the right, at least −√2
    ``beta``         Beta(2, 2)                  symmetric, within ±√5
    ``bernoulli``    Bernoulli(1/(1 + γ²))       two values; multiplicative: inverted dropout
    ``poisson``      Poisson(1)                  −1, 0, 1, 2, ...
    ``exponential``  Exponential(1)              skewed to the right, at least −1
    ``uniform``      Uniform(−1, 1)              flat, within ±√3
    ``chi2``         Chi2(4), that is            skewed to the right, at least −√2
                     Gamma(2, 1/2)
    ``lognormal``    LogNormal(0, 1/2)           skewed to the right, heavy tail
    ===============  ==========================  ============================================

    Args:
        name: one of :data:`FAMILIES`.
        injection: ``"additive"`` (z = h + γε) or ``"multiplicative"`` (z = h(1 + γε)).
        spread: the γ of the RNN, on which only ``bernoulli`` depends: its keep probability is
            1/(1 + γ²). If the RNN has or learns another γ′, multiplicative noise is no dropout,
            since the smaller value of z is h (1 − γ′/γ) instead of 0.

    Returns:
        The noise.

    Raises:
        ValueError: if the name or the injection is unknown, or the spread is not positive and
            finite.

    Example:
        >>> family("laplace", "multiplicative").base
        Laplace(loc: 0.0, scale: 1.0)
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown noise {name!r}; the known ones are {', '.join(FAMILIES)}")
    if not (math.isfinite(spread) and spread > 0):
        raise ValueError(f"spread must be positive and finite, got {spread}; choose one above 0")
    base = FAMILIES[name](spread)
    if injection == "additive":
        return Additive(base)
    if injection == "multiplicative":
        return Multiplicative(base)
    raise ValueError(f"unknown injection {injection!r}; choose additive or multiplicative")
