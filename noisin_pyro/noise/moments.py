"""Mean, standard deviation and bounds of a distribution."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch.distributions import Distribution, VonMises, constraints

from noisin_pyro.noise.moved import moved

__all__ = ["bounds", "moments"]


def moments(base: Distribution) -> tuple[float, float]:
    """Mean and standard deviation of a univariate distribution, in double precision.

    The standard deviation of a continuous distribution without a finite variance is infinite. A
    moment is NaN if the distribution does not implement it. Both are NaN for a Categorical, whose
    classes need not be numbers, and for a VonMises, whose ``variance`` in torch is the circular
    one.

    Args:
        base: a distribution with batch shape ``()``.

    Example:
        >>> import torch
        >>> moments(torch.distributions.Uniform(-3.0, 3.0))
        (0.0, 1.7320508075688772)
    """
    if isinstance(base, VonMises):
        return math.nan, math.nan
    exact = moved(base, torch.float64, torch.device("cpu"))
    mean = variance = math.nan
    with suppress(NotImplementedError):
        mean = float(exact.mean)
    with suppress(NotImplementedError):
        variance = float(exact.variance)
        if math.isnan(variance) and not base.support.is_discrete:  # type: ignore[union-attr]
            variance = math.inf  # StudentT and FisherSnedecor return NaN where it does not exist
    return mean, math.sqrt(variance)


def bounds(support: Any) -> tuple[float, float]:
    """The lower and upper bound of a support, infinite if there is none.

    Args:
        support: one of torch's constraints. A mixture's interval contains the supports of all its
            components.

    Example:
        >>> import torch
        >>> bounds(torch.distributions.Exponential(1.0).support)
        (0.0, inf)
    """
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return 0.0, 1.0
    low = torch.as_tensor(getattr(support, "lower_bound", -math.inf), device="cpu")
    high = torch.as_tensor(getattr(support, "upper_bound", math.inf), device="cpu")
    return float(low.min()), float(high.max())
