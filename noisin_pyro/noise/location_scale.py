"""The location-scale family of a standardised distribution: z = loc + scale · ε."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from noisin_pyro.noise.standardized import Lattice, Standardized

__all__ = ["LocationScale"]


class LocationScale(dist.TorchDistribution):
    """z = loc + scale · ε, with ε a :class:`.Standardized` distribution.

    ``scale`` may be negative. Where it is 0, as for multiplicative noise on a state of 0, z is a
    point mass with log-probability 0 at ``loc`` and −∞ elsewhere.

    Args:
        standardized: the distribution of ε, with batch shape ``()``.
        loc: the mean of z, with shape (\\*B,).
        scale: the signed standard deviation of z, broadcastable with ``loc``.

    Example:
        >>> import torch
        >>> epsilon = Standardized(torch.distributions.Normal(0.0, 1.0), 0.0, 1.0)
        >>> z = LocationScale(epsilon, torch.tensor([1.0, 2.0]), torch.tensor(0.5))
        >>> z.mean, z.stddev
        (tensor([1., 2.]), tensor([0.5000, 0.5000]))
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.real,
        "standardized": constraints.dependent,  # Pyro's LocScaleReparam keeps the listed arguments
    }
    has_rsample = True
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        standardized: Standardized,
        loc: Tensor,
        scale: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.standardized = standardized
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return f"LocationScale({self.standardized}, batch_shape={tuple(self.batch_shape)})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> LocationScale:
        new: LocationScale = self._get_checked_instance(  # type: ignore[no-untyped-call]
            LocationScale, _instance
        )
        shape = torch.Size(batch_shape)
        new.standardized = self.standardized
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(LocationScale, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.standardized.has_enumerate_support

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        """The image of the support of ε, with bounds widened by rounding error.

        If ε has one bound, the sign of ``scale`` decides whether z is bounded below or above. For
        mixed signs torch has no constraint, so the support is ``real``.
        """
        if self.standardized.discrete:
            return Lattice(-math.inf, math.inf)
        finite = [end for end in self.standardized.ends if math.isfinite(end)]
        edges = [self.loc + self.scale * end for end in finite]
        if len(edges) == 2:
            low, high = torch.minimum(*edges), torch.maximum(*edges)
            return constraints.interval(low - self._slack(low), high + self._slack(high))
        if edges and bool((self.scale != 0).all()):
            edge, above = edges[0], (self.scale > 0) == (finite[0] < 0)
            if bool(above.all()):
                return constraints.greater_than_eq(edge - self._slack(edge))
            if not bool(above.any()):
                return constraints.less_than(edge + self._slack(edge))
        return constraints.real

    def _slack(self, z: Tensor) -> Tensor:
        return 4 * torch.finfo(z.dtype).eps * (z.abs() + self.loc.abs())

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.loc + self.scale * self.standardized.expand(shape).rsample()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shift = value - self.loc
        still = self.scale == 0
        scale = self.scale.masked_fill(still, 1.0)
        size: Tensor | float = 0.0
        if self.standardized.has_edges:
            size = (value.abs() + self.loc.abs()).clamp(min=torch.finfo(self.loc.dtype).tiny)
            size = (size / scale.abs()).detach()
        density = self.standardized.rounded_log_prob(shift / scale, size)
        if not self.standardized.discrete:
            density = density - scale.abs().log()
        point = torch.where(shift == 0, 0.0, -math.inf).to(density.dtype)
        return torch.where(still, point, density)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.standardized.enumerate_support(expand=False)
        return self.loc + self.scale * values.reshape((-1,) + (1,) * len(self.batch_shape))
