"""Densities: a distribution standardised to mean 0 and variance 1, and its affine images.

Any univariate distribution with finite mean μ and standard deviation σ gives

    ε = (x − μ) / σ,  x ~ base            :class:`Standardized`
    z = loc + scale · ε                   :class:`LocationScale`

Both sample by drawing from the base and shifting, so a gradient reaches ``loc`` and
``scale`` pathwise whatever the base, discrete ones included: ε carries no parameter.

Rounding moves a draw from the edge of its support to just outside, or from a point of a
lattice to beside it. So a value that misses the support by no more than the rounding of the
numbers it was computed from counts as lying in it; any other has log-probability −∞.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, VonMises, constraints
from torch.distributions.transforms import Transform

__all__ = ["LocationScale", "Standardized", "bounds", "moments", "moved", "tensors"]


def _copied(node: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """A copy, with changed tensors, of the tree that a distribution is; it validates nothing.

    ``done`` holds what was copied already, for a transform and its inverse hold each other.
    """
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, Tensor):
        done[id(node)] = change(node)
    elif isinstance(node, (Distribution, Transform, nn.Module)):
        done[id(node)] = new = copy.copy(node)
        for name, value in vars(node).items():
            new.__dict__[name] = _copied(value, change, done)
        if isinstance(new, Distribution):
            new._validate_args = False
    elif isinstance(node, dict):
        return {key: _copied(value, change, done) for key, value in node.items()}
    elif isinstance(node, (list, tuple)) and not isinstance(node, torch.Size):
        return type(node)(_copied(value, change, done) for value in node)
    else:
        return node
    return done[id(node)]


def moved(base: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A copy of a distribution whose tensors have the given dtype and device.

    torch has no ``Distribution.to``, and a ``deepcopy`` of its inverse transforms is broken.

    Args:
        base: any distribution; those inside it (a Beta's Dirichlet, a mixture's components, a
            transformed one's base) are copied too.
        dtype: for its floating-point tensors; others keep theirs.
        device: for all its tensors.

    Example:
        >>> import torch
        >>> gumbel = torch.distributions.Gumbel(0.0, 1.0)
        >>> moved(gumbel, torch.float64, torch.device("cpu")).sample().dtype
        torch.float64
    """

    def change(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return _copied(base, change, {})


def tensors(base: Distribution) -> list[Tensor]:
    """All tensors that a distribution holds, at any depth.

    Example:
        >>> import torch
        >>> tensors(torch.distributions.Exponential(2.0))
        [tensor(2.)]
    """
    collected: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        collected.append(tensor)
        return tensor

    _copied(base, collect, {})
    return collected


def moments(base: Distribution) -> tuple[float, float]:
    """Mean and standard deviation of a univariate distribution, in double precision.

    A continuous distribution without a variance has an infinite standard deviation. NaN is what
    torch says of a Categorical, whose classes need not be numbers.

    Args:
        base: a distribution with batch shape ``()``.

    Raises:
        NotImplementedError: if the distribution knows no closed form for them.

    Example:
        >>> import torch
        >>> moments(torch.distributions.Uniform(-3.0, 3.0))
        (0.0, 1.7320508075688772)
    """
    if isinstance(base, VonMises):
        raise NotImplementedError("torch's variance of a VonMises is the circular one")
    exact = moved(base, torch.float64, torch.device("cpu"))
    mean, variance = float(exact.mean), float(exact.variance)
    if math.isnan(variance) and not base.support.is_discrete:  # type: ignore[union-attr]
        variance = math.inf  # so StudentT and FisherSnedecor say that there is none
    return mean, math.sqrt(variance)


def bounds(support: Any) -> tuple[float, float]:
    """The ends of the interval that a support spans, infinite where it is open-ended.

    Args:
        support: one of torch's constraints; a mixture's spans those of all its components.

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


class Standardized(dist.TorchDistribution):
    """ε = (x − μ)/σ with x ~ ``base``: mean 0, variance 1.

    The density of a continuous base carries the Jacobian σ; a discrete one keeps its masses.

    Args:
        base: a univariate distribution, batch shape ``()``, integer-valued if it is discrete.
        mean: its mean μ.
        stddev: its standard deviation σ > 0.
        batch_shape: the batch shape of ε; draws are independent over it.
        like: a tensor whose dtype and device the draws get; the base's own if omitted.

    Example:
        >>> import torch
        >>> noise = Standardized(torch.distributions.Exponential(2.0), 0.5, 0.5)
        >>> noise.expand([3]).sample((2,)).shape, noise.mean, noise.variance
        (torch.Size([2, 3]), tensor(0.), tensor(1.))
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
        *,
        like: Tensor | None = None,
    ) -> None:
        if like is None:
            like = next((t for t in tensors(base) if t.is_floating_point()), torch.empty(()))
        # torch samples a Gamma, among others, in no less than float32.
        self._work = torch.promote_types(like.dtype, torch.float32)
        self._like = torch.empty((), dtype=like.dtype, device=like.device)
        self.base, self.loc, self.std = moved(base, self._work, like.device), mean, stddev
        support: Any = base.support
        self.discrete = bool(support.is_discrete)
        self._low, self._high = bounds(support)
        self.unbounded = not self.discrete and self._low == -math.inf and self._high == math.inf
        # The least and the greatest ε: support bounds, widened by rounding error.
        eps, shift = 2 * torch.finfo(like.dtype).eps, abs(mean) / stddev
        low, high = ((edge - mean) / stddev for edge in (self._low, self._high))
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
            return _Lattice(low, high)
        if math.isfinite(low) and math.isfinite(high):
            return constraints.interval(low, high)
        if math.isfinite(low):
            return constraints.greater_than_eq(low)
        if math.isfinite(high):
            return constraints.less_than(high)
        return constraints.real

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        if type(self.base) in (Normal, dist.Normal):  # twice as fast
            return torch.randn(shape, dtype=self._like.dtype, device=self._like.device)
        with torch.no_grad():
            epsilon = self._standardize(self.base.sample(shape))
            # A uniform draw of 0 makes Pyro's Logistic infinite once in 2²⁴ float32 draws.
            return epsilon.nan_to_num_(0.0, 0.0, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.rounded_log_prob(value, 0.0)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rounded_log_prob(self, value: Tensor, magnitude: Tensor | float) -> Tensor:
        """The log-probability of an ε that was computed from rounded numbers.

        Args:
            value: ε, with shape (\\*B,).
            magnitude: the size of those numbers, in ε's unit; broadcastable with ``value``.
        """
        # Trace_ELBO comes here in every training step: nothing may wait for the device.
        x = value.to(torch.promote_types(value.dtype, self._work)) * self.std + self.loc
        if self.unbounded:
            return self.base.log_prob(x) + math.log(self.std)  # type: ignore[no-any-return]
        size = x.detach().abs() + abs(self.loc) + magnitude * self.std
        slack = 8 * torch.finfo(self._like.dtype).eps * size
        if self.discrete:
            slack, jacobian, somewhere = slack.clamp(max=0.25), 0.0, float(round(self.loc))
            inside = x.round().clamp(self._low, self._high)
        else:
            slack, jacobian, somewhere = slack.clamp(max=self.std / 4), math.log(self.std), self.loc
            inside = x.clamp(self._low + slack, self._high - slack)
        within = (x - inside).abs() <= 2 * slack
        log_prob = self.base.log_prob(torch.where(within, inside, somewhere))
        nowhere = torch.where(x.isnan(), x, -math.inf).detach()
        return torch.where(within, log_prob + jacobian, nowhere)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self._standardize(self.base.enumerate_support(expand=False))
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1,) + self.batch_shape) if expand else values

    def _standardize(self, x: Tensor) -> Tensor:
        x = x.to(self._like.device, self._work)
        return x.sub(self.loc).div_(self.std).to(self._like.dtype)


class LocationScale(dist.TorchDistribution):
    """z = loc + scale · ε, with ε a :class:`Standardized` distribution.

    ``scale`` may be negative. Where it is 0 z is a point mass at ``loc``, whose log-probability is
    0 at ``loc`` and −∞ elsewhere (multiplicative noise on a state of 0).

    Args:
        standardized: the distribution of ε, batch shape ``()``.
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
        "standardized": constraints.dependent,  # Pyro's LocScaleReparam hands on what is listed
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
        """The image of ε's support, its bounds widened by rounding error.

        Where ε is bounded on one side, the side of z depends on the sign of ``scale``. Mixed
        signs have no torch constraint, so they return ``real``.
        """
        if self.standardized.discrete:
            return _Lattice(-math.inf, math.inf)
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
        if not self.standardized.unbounded:
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


class _Lattice(constraints.Constraint):
    """A countable set between two bounds; the distribution's masses say which points are in it."""

    is_discrete = True

    def __init__(self, low: float, high: float) -> None:
        self.lower_bound, self.upper_bound = low, high
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (value >= self.lower_bound) & (value <= self.upper_bound)
