"""A distribution standardised to mean 0 and variance 1, and its location-scale family.

Any univariate distribution with finite mean μ and standard deviation σ gives

    ε = (x − μ) / σ,  x ~ base            :class:`Standardized`
    z = loc + scale · ε                   :class:`LocationScale`

ε has no parameters, so gradients reach ``loc`` and ``scale`` pathwise for every base, also for a
discrete one.

Rounding can move ε or z slightly off its support: past a bound, or beside a point of a lattice. A
value whose distance from the support is within the rounding error of its computation counts as a
point of the support. Any other value has log-probability −∞.
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
    """A copy of a distribution in which every tensor is changed; it does not validate arguments.

    Args:
        node: a distribution, or a part of one at any depth.
        change: the function of each tensor.
        done: the copies of the parts so far by ``id``, because a transform and its inverse refer to
            each other.
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

    torch has no ``Distribution.to``, and ``copy.deepcopy`` breaks inverse transforms.

    Args:
        base: any distribution. The distributions inside it (the Dirichlet of a Beta, the components
            of a mixture, the base of a transformed one) are copied too.
        dtype: the dtype of its floating-point tensors; other tensors keep theirs.
        device: the device of all its tensors.

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
    """All tensors in a distribution, at any depth.

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

    The standard deviation of a continuous distribution without a finite variance is infinite. Both
    are NaN for a Categorical, whose classes need not be numbers.

    Args:
        base: a distribution with batch shape ``()``.

    Raises:
        NotImplementedError: if the distribution does not implement ``mean`` and ``variance``, or is
            a VonMises, whose ``variance`` in torch is the circular one.

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
        support: Any = base.support
        self.discrete = bool(support.is_discrete)
        self._low, self._high = bounds(support)
        self.unbounded = not self.discrete and self._low == -math.inf and self._high == math.inf
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
    """A countable set between two bounds; ``check`` compares with the bounds alone."""

    is_discrete = True

    def __init__(self, low: float, high: float) -> None:
        self.lower_bound, self.upper_bound = low, high
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (value >= self.lower_bound) & (value <= self.upper_bound)
