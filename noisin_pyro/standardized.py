"""Densities: a distribution standardised to mean 0 and variance 1, and its affine images.

Any univariate distribution with finite mean μ and standard deviation σ gives

    ε = (x − μ) / σ,  x ~ base            :class:`Standardized`
    z = loc + scale · ε                   :class:`LocationScale`

Both sample by drawing from the base and shifting, so a gradient reaches ``loc`` and
``scale`` pathwise whatever the base, discrete ones included: ε carries no parameter.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints
from torch.distributions.transforms import Transform

__all__ = ["LocationScale", "Standardized", "moments"]


def moved(base: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Returns a copy of a distribution whose tensors have the given dtype and device.

    torch offers no ``Distribution.to``. A distribution is a tree of tensors, transforms and
    further distributions, so a copy of the tree serves for all of them.
    """
    if isinstance(base, Tensor):
        return base.to(device=device, dtype=dtype if base.is_floating_point() else base.dtype)
    if isinstance(base, (list, tuple)) and not isinstance(base, torch.Size):
        return type(base)(moved(item, dtype, device) for item in base)
    if not isinstance(base, (Distribution, Transform)):
        return base
    clone = copy.copy(base)
    for name, value in vars(base).items():
        if isinstance(value, (Tensor, Distribution, Transform, list, tuple)):
            clone.__dict__[name] = moved(value, dtype, device)
    return clone


def moments(base: Distribution) -> tuple[float, float]:
    """Mean and standard deviation of a univariate distribution, in double precision.

    Raises:
        NotImplementedError: if the distribution knows no closed form for them.
    """
    exact = moved(base, torch.float64, torch.device("cpu"))
    return float(exact.mean), math.sqrt(float(exact.variance))


class Standardized(TorchDistribution):
    """ε = (x − μ)/σ with x ~ ``base``: mean 0, variance 1 (``../shared`` design, equation of §2).

    The density of a continuous base carries the Jacobian σ; a discrete one keeps its masses.

    Args:
        base: a univariate distribution, batch shape ``()``, integer-valued if it is discrete.
        mean: its mean μ.
        stddev: its standard deviation σ > 0.
        batch_shape: the batch shape of ε; draws are independent over it.

    Example:
        >>> import torch
        >>> noise = Standardized(torch.distributions.Exponential(2.0), 0.5, 0.5)
        >>> noise.expand([3]).sample().shape, noise.support
        (torch.Size([3]), GreaterThan(lower_bound=-1.0))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True  # no parameter, so there is no gradient that sampling could lose

    def __init__(
        self,
        base: Distribution,
        mean: float,
        stddev: float,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
    ) -> None:
        self.base, self.loc, self.std = base, mean, stddev
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Standardized:
        new = self._get_checked_instance(Standardized, _instance)
        new.base, new.loc, new.std = self.base, self.loc, self.std
        super(Standardized, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def discrete(self) -> bool:
        """Whether the base puts its mass on a countable set."""
        return bool(self.base.support.is_discrete)

    @property
    def mean(self) -> Tensor:
        return self._dtype_anchor().new_zeros(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return self._dtype_anchor().new_ones(self.batch_shape)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return bool(self.base.has_enumerate_support)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        low, high = _bounds(self.base.support)
        low, high = (low - self.loc) / self.std, (high - self.loc) / self.std
        return _Lattice(low, high) if self.discrete else _between(low, high)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        if type(self.base).__name__ == "Normal" and isinstance(self.base, Normal):
            anchor = self.base.loc
            return torch.randn(shape, dtype=anchor.dtype, device=anchor.device)
        with torch.no_grad():
            x = self.base.expand(shape).sample()
            return x.sub_(self.loc).div_(self.std)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value * self.std + self.loc
        if self.discrete:
            return _log_prob(self.base, x.round())
        return _log_prob(self.base, _snapped(x, self.base.support)) + math.log(self.std)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = (self.base.enumerate_support(expand=False) - self.loc) / self.std
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1,) + self.batch_shape) if expand else values

    def _dtype_anchor(self) -> Tensor:
        return next(v for v in _tensors(self.base) if v.is_floating_point())


class LocationScale(TorchDistribution):
    """z = loc + scale · ε, with ε a :class:`Standardized` distribution.

    ``scale`` may be negative; where it is 0 the law is a point mass at ``loc``, which counts
    as log-probability 0 at ``loc`` and −∞ elsewhere (multiplicative noise on a state of 0).

    Args:
        epsilon: the standardised noise, batch shape ``()``.
        loc: the mean of z, with shape (\\*B,).
        scale: the signed standard deviation of z, broadcastable with ``loc``.

    Example:
        >>> import torch
        >>> epsilon = Standardized(torch.distributions.Normal(0.0, 1.0), 0.0, 1.0)
        >>> z = LocationScale(epsilon, torch.tensor([1.0, 2.0]), torch.tensor(0.5))
        >>> z.mean, z.stddev
        (tensor([1., 2.]), tensor([0.5000, 0.5000]))
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.real}
    has_rsample = True

    def __init__(
        self,
        epsilon: Standardized,
        loc: Tensor,
        scale: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LocationScale:
        new = self._get_checked_instance(LocationScale, _instance)
        shape = torch.Size(batch_shape)
        new.epsilon = self.epsilon
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
        return self.epsilon.has_enumerate_support

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        if self.epsilon.discrete:
            return _Lattice(-math.inf, math.inf)
        return constraints.real

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.loc + self.scale * self.epsilon.expand(shape).rsample()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        still = self.scale == 0
        scale = torch.where(still, torch.ones_like(self.scale), self.scale)
        density = self.epsilon.log_prob((value - self.loc) / scale)
        if not self.epsilon.discrete:
            density = density - scale.abs().log()
        if not bool(still.any()):
            return density
        point = torch.where(value == self.loc, 0.0, -math.inf).to(density.dtype)
        return torch.where(still, point, density)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.epsilon.enumerate_support(expand=False)
        return self.loc + self.scale * values.reshape((-1,) + (1,) * len(self.batch_shape))


class _Lattice(constraints.Constraint):
    """A countable set between two bounds; a density's own masses say which points it holds."""

    is_discrete = True

    def __init__(self, low: float, high: float) -> None:
        self.lower_bound, self.upper_bound = low, high

    def check(self, value: Tensor) -> Tensor:
        slack = 1e-4 * (1 + value.abs())
        return (value >= self.lower_bound - slack) & (value <= self.upper_bound + slack)


def _tensors(base: Any) -> list[Tensor]:
    """All tensors a distribution holds, depth first."""
    if isinstance(base, Tensor):
        return [base]
    if isinstance(base, (Distribution, Transform)):
        return [t for value in vars(base).values() for t in _tensors(value)]
    if isinstance(base, (list, tuple)) and not isinstance(base, torch.Size):
        return [t for item in base for t in _tensors(item)]
    return []


def _bounds(support: Any) -> tuple[float, float]:
    """The ends of the interval a support spans, infinite where it is open-ended."""
    if support is constraints.boolean:
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _between(low: float, high: float) -> constraints.Constraint:
    if math.isinf(low) and math.isinf(high):
        return constraints.real
    if math.isinf(high):
        return constraints.greater_than(low)
    if math.isinf(low):
        return constraints.less_than(high)
    return constraints.interval(low, high)


def _snapped(x: Tensor, support: Any) -> Tensor:
    """Brings back inside the support what rounding in ε·σ + μ pushed just over its edge."""
    low, high = _bounds(support)
    if math.isinf(low) and math.isinf(high):
        return x
    finfo = torch.finfo(x.dtype)
    width = 16 * finfo.eps * (1 + x.detach().abs())
    inside = x
    if not math.isinf(low):
        least = torch.nextafter(x.new_tensor(low), x.new_tensor(math.inf)).clamp(
            min=finfo.tiny if low == 0 else -math.inf
        )
        inside = torch.where((x < least) & (x >= low - width), least, inside)
    if not math.isinf(high):
        most = torch.nextafter(x.new_tensor(high), x.new_tensor(-math.inf))
        inside = torch.where((x > most) & (x <= high + width), most, inside)
    return inside


def _log_prob(base: Distribution, x: Tensor) -> Tensor:
    """The base's log-probability, −∞ outside its support instead of an error."""
    quiet = copy.copy(base)
    quiet._validate_args = False
    within = base.support.check(x)
    if bool(within.all()):
        return quiet.log_prob(x)
    anywhere = torch.where(within, x, x[within].flatten()[:1] if bool(within.any()) else x)
    return torch.where(within, quiet.log_prob(anywhere), -math.inf)
