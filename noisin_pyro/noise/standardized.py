"""A distribution standardised to mean 0 and variance 1.

Any univariate distribution with finite mean μ and standard deviation σ gives

    ε = (x − μ) / σ,  x ~ base            :class:`Standardized`
    z = loc + scale · ε                   :class:`.LocationScale`

ε has no parameters, so gradients reach ``loc`` and ``scale`` pathwise for every base, also for a
discrete one.

Rounding can move ε or z slightly off its support: past a bound, or beside a point of a lattice. A
value whose distance from the support is within the rounding error of its computation counts as a
point of the support. Any other value has log-probability −∞.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints

from noisin_pyro.noise.compound import (
    base_bounds,
    has_edges,
    is_compound,
    log_density,
    support_of,
)
from noisin_pyro.noise.moved import moved, tensors

__all__ = ["Lattice", "Standardized"]


class Standardized(dist.TorchDistribution):
    """ε = (x − μ)/σ with x ~ ``base``: mean 0, variance 1.

    The density of a continuous base is multiplied by the Jacobian σ. The probabilities of a
    discrete base are unchanged.

    Args:
        base: a univariate distribution with batch shape ``()``, integer-valued if it is discrete.
        mean: its mean μ.
        stddev: its standard deviation σ > 0.
        batch_shape: the batch shape of ε; draws are independent over it.
        like: a tensor with the dtype and device of the draws; by default a tensor of the base.

    Attributes:
        unbounded: whether the base is continuous on the whole real line.
        has_edges: whether rounding can move a draw off the support of the base, or of a part of it.
        low, high: the bounds of the base.
        ends: the lower and upper bound of ε, widened by rounding error.

    Example:
        >>> import torch
        >>> noise = Standardized(torch.distributions.Exponential(2.0), 0.5, 0.5)
        >>> noise.expand([3]).sample((2,)).shape, noise.mean, noise.variance
        (torch.Size([2, 3]), tensor(0.), tensor(1.))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True  # ε has no parameters, so sampling loses no gradient

    def __init__(
        self,
        base: Distribution,
        mean: float,
        stddev: float,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
        *,
        like: Tensor | None = None,
    ) -> None:
        if like is None:
            like = next((t for t in tensors(base) if t.is_floating_point()), torch.empty(()))
        # torch cannot sample a Gamma, among others, in half precision.
        self._work = torch.promote_types(like.dtype, torch.float32)
        self._like = torch.empty((), dtype=like.dtype, device=like.device)
        self.base, self.loc, self.std = moved(base, self._work, like.device), mean, stddev
        self.discrete = bool(support_of(base).is_discrete)
        self.low, self.high = base_bounds(base)
        self.unbounded = not self.discrete and self.low == -math.inf and self.high == math.inf
        self.has_edges, self._compound = has_edges(base), is_compound(base)
        eps, shift = 2 * torch.finfo(like.dtype).eps, abs(mean) / stddev
        low, high = ((edge - mean) / stddev for edge in (self.low, self.high))
        self.ends = low - eps * (abs(low) + shift), high + eps * (abs(high) + shift)
        super().__init__(batch_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return f"Standardized({self.base}, batch_shape={tuple(self.batch_shape)})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Standardized:
        new: Standardized = self._get_checked_instance(  # type: ignore[no-untyped-call]
            Standardized, _instance
        )
        new.__dict__.update(vars(self))
        super(Standardized, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self._like.new_zeros(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return self._like.new_ones(self.batch_shape)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return bool(self.base.has_enumerate_support)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        low, high = self.ends
        if self.discrete:
            return Lattice(low, high)
        if math.isfinite(low) and math.isfinite(high):
            return constraints.interval(low, high)
        if math.isfinite(low):
            return constraints.greater_than_eq(low)
        if math.isfinite(high):
            return constraints.less_than(high)
        return constraints.real

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        if type(self.base) in (Normal, dist.Normal):  # twice as fast as the general case
            return torch.randn(shape, dtype=self._like.dtype, device=self._like.device)
        with torch.no_grad():
            epsilon = self._standardize(self.base.sample(shape))
            # Pyro's Logistic is infinite if its uniform draw is 0: once in 2²⁴ draws in float32.
            return epsilon.nan_to_num_(0.0, 0.0, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.rounded_log_prob(value, 0.0)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @property
    def is_concrete(self) -> bool:
        """Whether its tensors have values; those made while ``torch.export`` records have none."""
        return type(self._like) is Tensor

    def rounded_log_prob(self, value: Tensor, magnitude: Tensor | float) -> Tensor:
        """The log-probability of an ε that was computed from larger, rounded numbers.

        Args:
            value: ε, with shape (\\*B,).
            magnitude: the absolute value of those numbers divided by the standard deviation of z,
                from which the tolerance of rounding follows; broadcastable with ``value``.

        Returns:
            The log-probabilities, with shape (\\*B,).
        """
        # Trace_ELBO calls this in every training step, so nothing here synchronises with a GPU.
        x = value.to(torch.promote_types(value.dtype, self._work)) * self.std + self.loc
        if not self.has_edges:
            return self.base.log_prob(x) + math.log(self.std)  # type: ignore[no-any-return]
        size = x.detach().abs() + abs(self.loc) + magnitude * self.std
        slack = 8 * torch.finfo(self._like.dtype).eps * size
        if self.discrete:
            slack, jacobian, somewhere = slack.clamp(max=0.25), 0.0, float(round(self.loc))
            inside = x.round().clamp(self.low, self.high)
        elif self._compound:
            density = log_density(self.base, x, slack.clamp(max=self.std / 4)) + math.log(self.std)
            return torch.where(x.isnan(), x, density)
        else:
            slack, jacobian, somewhere = slack.clamp(max=self.std / 4), math.log(self.std), self.loc
            inside = x.clamp(self.low + slack, self.high - slack)
        within = (x - inside).abs() <= 2 * slack
        inside = torch.where(within, inside, somewhere)
        if self._compound:
            log_prob = log_density(self.base, inside, torch.zeros_like(inside))
        else:
            log_prob = self.base.log_prob(inside)
        nowhere = torch.where(x.isnan(), x, -math.inf).detach()
        return torch.where(within, log_prob + jacobian, nowhere)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self._standardize(self.base.enumerate_support(expand=False))
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1,) + self.batch_shape) if expand else values

    def _standardize(self, x: Tensor) -> Tensor:
        x = x.to(self._like.device, self._work)
        return x.sub(self.loc).div_(self.std).to(self._like.dtype)


class Lattice(constraints.Constraint):
    """A countable set between two bounds; ``check`` compares with the bounds alone."""

    is_discrete = True

    def __init__(self, low: float, high: float) -> None:
        self.lower_bound, self.upper_bound = low, high
        super().__init__()

    def __repr__(self) -> str:
        return f"Lattice({self.lower_bound:g}, {self.upper_bound:g})"

    def check(self, value: Tensor) -> Tensor:
        return (value >= self.lower_bound) & (value <= self.upper_bound)
