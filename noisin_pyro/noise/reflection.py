"""Antithetic noise: a partner of each draw, with the same distribution and negative correlation.

    symmetric base          ε  ->  −ε
    base with an ``icdf``   ε  ->  F⁻¹(1 − F(ε)), where F is the distribution function of ε

The average of f(ε) over a draw and its partner has a smaller variance than over two independent
draws if f is monotone (Hammersley and Morton 1956, https://doi.org/10.1017/S0305004100031455).
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.moved import moved, widest

__all__ = ["check_reflects", "is_symmetric", "reflect"]

_SYMMETRIC = (
    *(dist.Normal, dist.Laplace, dist.Logistic, dist.SoftLaplace, dist.StudentT, dist.Uniform),
    *(torch.distributions.Normal, torch.distributions.Laplace, torch.distributions.StudentT),
    torch.distributions.Uniform,
)


def is_symmetric(base: Distribution) -> bool:
    """Whether a base is known to be symmetric about its mean.

    Args:
        base: a univariate distribution with batch shape ().

    Example:
        >>> is_symmetric(dist.Laplace(0.0, 1.0)), is_symmetric(dist.Gumbel(0.0, 1.0))
        (True, False)
    """
    if isinstance(base, torch.distributions.Beta):
        return bool(base.concentration0 == base.concentration1)
    if isinstance(base, (torch.distributions.Bernoulli, torch.distributions.Binomial)):
        return bool(base.probs == 0.5)
    return isinstance(base, _SYMMETRIC)


def check_reflects(noise: Noise) -> None:
    """Checks that :func:`reflect` can reflect a noise.

    Args:
        noise: the noise of a layer or of the input.

    Raises:
        ValueError: if it is not additive or multiplicative, or its base is neither known to be
            symmetric nor has an ``icdf``.
    """
    if not isinstance(noise, AffineNoise):
        raise ValueError(
            f"antithetic pairs need an Additive or Multiplicative noise, got {noise}, which has no "
            "ε to reflect; use independent samples"
        )
    base: Any = noise.base
    if is_symmetric(base):
        return
    exact: Any = moved(base, torch.float64, torch.device("cpu"))  # does not validate the mean
    try:
        exact.icdf(exact.cdf(torch.tensor(noise.mean, dtype=torch.float64)))  # nothing is drawn
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"antithetic pairs need a symmetric base or one with an icdf, got {base}, which has "
            "neither; use independent samples"
        ) from None


def reflect(noise: AffineNoise, epsilon: Tensor) -> Tensor:
    """The antithetic partner of ε, which has the same distribution.

    Args:
        noise: the noise of which ε is a draw.
        epsilon: standardised draws, of any shape.

    Returns:
        The partners, with the same shape.

    Raises:
        ValueError: as :func:`check_reflects`.

    Example:
        >>> from noisin_pyro import Additive
        >>> reflect(Additive(dist.Normal(0.0, 1.0)), torch.tensor([0.5, -2.0]))
        tensor([-0.5000,  2.0000])
        >>> exponential = Additive(dist.Exponential(1.0))  # ε = x − 1, median x = log 2
        >>> reflect(exponential, torch.tensor([0.6931 - 1])).add(1)
        tensor([0.6932])
    """
    check_reflects(noise)
    if is_symmetric(noise.base):
        return -epsilon
    assert noise.mean is not None and noise.stddev is not None
    wide = widest(epsilon.device)
    base: Any = moved(noise.base, wide, epsilon.device)
    # ε stands for all numbers that round to it, so F is averaged over the ends of their interval.
    # At an end of the support F alone would be 0 or 1, where the icdf may be infinite.
    law, middle = noise.standardized(epsilon), epsilon.to(wide)
    half = torch.finfo(epsilon.dtype).eps / 2 * middle.abs()
    ends = torch.stack([middle - half, middle + half]) * noise.stddev + noise.mean
    least = torch.finfo(wide).eps
    u = base.cdf(ends.clamp(law.low, law.high)).mean(0).clamp(least, 1 - least)
    partner: Tensor = (base.icdf(1 - u) - noise.mean) / noise.stddev
    return partner.to(epsilon.dtype)
