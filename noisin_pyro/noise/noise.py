"""Unbiased noise made from any distribution.

    Additive(base)            z = h + γ ε            Std[z | h] = γ
    Multiplicative(base)      z = h (1 + γ ε)        Std[z | h] = γ |h|
    MeanParameterized(fn)     z ~ fn(mean=h, spread=γ)

with ε = (x − μ)/σ, x ~ base. The three desiderata of the paper's §3 (E[z | h] = h, a free
spread γ, the gradients of the original RNN) hold for the first two by construction. A noise
is a frozen value; the spread γ belongs to the RNN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from noisin_pyro.noise.standardized import LocationScale, Standardized, bounds, moments, tensors

__all__ = ["FAMILIES", "Additive", "MeanParameterized", "Multiplicative", "Noise", "family"]


class Noise:
    """A law p(z | h, γ) with E[z | h] = h. See :class:`Additive` and its siblings.

    Two noises are equal if they hold the same base object: distributions have no equality.
    """

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        """p(z | h).

        Args:
            h: the clean state, with shape (\\*, B, H).
            spread: γ, broadcastable with ``h``.

        Returns:
            A distribution with batch shape (\\*, B, H).
        """
        raise NotImplementedError

    def check_range(self, low: float, high: float, closed: bool, transition: str) -> None:
        """Checks that this noise can have any state of a transition as its mean.

        Args:
            low, high: the ends of the states' range.
            closed: whether ``low`` belongs to it; ``high`` never does.
            transition: its name, for the error.

        Raises:
            ValueError: if it cannot.
        """

    def inside(self, h: Tensor, low: float, high: float, closed: bool) -> Tensor:
        """A state as this noise can take it for its mean.

        In floating point a saturated unit stands on the end of an open range, where a
        :class:`MeanParameterized` law is not defined; it is moved by one unit of rounding.

        Args:
            h: the clean state, of any shape.
            low, high, closed: the range, as in :meth:`check_range`.
        """
        return h


@dataclass(frozen=True)
class _Standardizing(Noise):
    base: Distribution
    mean: float | None = field(default=None, kw_only=True)
    stddev: float | None = field(default=None, kw_only=True)
    _cache: dict[Any, Standardized] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        name, base = type(self).__name__, self.base
        if not isinstance(base, Distribution):
            raise TypeError(
                f"{name} needs a distribution such as dist.Normal(0.0, 1.0), got {base!r}"
            )
        if base.event_shape or base.batch_shape:
            raise ValueError(
                f"{name} needs a univariate base, got {base} with batch shape "
                f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}; "
                "give scalar parameters, one draw is made per hidden unit"
            )
        if any(tensor.requires_grad for tensor in tensors(base)):
            raise ValueError(
                f"the base of {name} must carry no parameter, got {base} with one that "
                "requires a gradient; learn the RNN's spread instead"
            )
        try:
            known = moments(base)
        except NotImplementedError:
            known = math.nan, math.nan  # which is also torch's word for "there is none"
        mean = self._own_or_given("mean", known[0], known[1])
        stddev = self._own_or_given("stddev", known[1], known[1])
        if math.isnan(mean + stddev) and not math.isinf(stddev):
            raise ValueError(
                f"{base} knows no mean and variance of its own; "
                f"give them as {name}(base, mean=..., stddev=...)"
            )
        if not (math.isfinite(mean) and math.isfinite(stddev) and stddev > 0):
            raise ValueError(
                f"{name} needs a base with finite mean and a finite, positive variance, got "
                f"{base} with mean {mean} and standard deviation {stddev}; choose another base"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "stddev", stddev)

    def _own_or_given(self, what: str, own: float, scale: float) -> float:
        given: float | None = getattr(self, what)
        if given is None or math.isinf(own):
            return own
        if math.isnan(own):
            return float(given)
        if not math.isclose(given, own, rel_tol=1e-4, abs_tol=1e-4 * scale):
            raise ValueError(
                f"{what}={given} contradicts {self.base}, whose {what} is {own:.6g}; leave it out"
            )
        return own

    def __deepcopy__(self, memo: dict[int, Any]) -> _Standardizing:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": {}}  # its tensors may be another machine's

    def epsilon(self, like: Tensor) -> Standardized:
        """The standardised ε, batch shape ``()``, in the dtype and on the device of ``like``.

        Args:
            like: any floating-point tensor.
        """
        # tensors made in inference mode, or later from such, cannot be trained with
        key = (like.dtype, like.device, torch.is_inference_mode_enabled())
        if key not in self._cache:
            assert self.mean is not None and self.stddev is not None
            self._cache[key] = Standardized(self.base, self.mean, self.stddev, like=like)
        return self._cache[key]

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The pair (m, a) with z = h · m + a, where ``None`` stands for 1 and for 0.

        Args:
            epsilon: standardised noise, with shape (\\*, T, B, H).
            spread: γ, broadcastable with ``epsilon``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Additive(_Standardizing):
    """z = h + γ ε: the spread γ is the standard deviation of z given h.

    Args:
        base: any univariate distribution with finite mean and variance, Pyro's or torch's.
        mean: its mean, for a base that knows none of its own.
        stddev: its standard deviation (not its variance), likewise.

    Raises:
        TypeError: if ``base`` is no distribution.
        ValueError: if it has a batch or event dimension, an infinite, zero or unknown variance,
            a parameter that requires a gradient, or moments other than those given.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> noise = Additive(dist.Laplace(0.0, 1.0))
        >>> z = noise.distribution(torch.tensor([-1.0, 2.0]), torch.tensor(0.3))
        >>> z.mean, z.stddev
        (tensor([-1.,  2.]), tensor([0.3000, 0.3000]))
    """

    def distribution(self, h: Tensor, spread: Tensor) -> LocationScale:
        return LocationScale(self.epsilon(h), h, spread)

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[None, Tensor]:
        return None, spread * epsilon


@dataclass(frozen=True)
class Multiplicative(_Standardizing):
    """z = h (1 + γ ε): the spread γ is the coefficient of variation of z given h.

    With ``base = dist.Bernoulli(k)`` and γ = sqrt((1 − k)/k) this is inverted dropout with
    keep probability k. Arguments and errors are those of :class:`Additive`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> dropout = Multiplicative(dist.Bernoulli(0.5))
        >>> z = dropout.distribution(torch.tensor(3.0), torch.tensor(1.0))
        >>> z.enumerate_support()  # dropped, or kept and divided by 0.5
        tensor([0., 6.])
    """

    def distribution(self, h: Tensor, spread: Tensor) -> LocationScale:
        return LocationScale(self.epsilon(h), h, h * spread)

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[Tensor, None]:
        return torch.addcmul(epsilon.new_ones(()), spread, epsilon), None


@dataclass(frozen=True)
class MeanParameterized(Noise):
    """z ~ fn(mean=h, spread=γ), for families whose mean is the state itself.

    What γ measures is up to ``fn``. Its sample sites are one per layer and timestep in every
    mode, because z_t has no parameter-free form. Where the distribution has no ``rsample`` the
    objectives fall back on the score-function gradient.

    Args:
        fn: from (mean, spread), both with shape (\\*, B, H), to a distribution of that batch
            shape whose mean is ``mean``. Its support must contain the transition's range.

    Raises:
        TypeError: if ``fn`` cannot be called.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> gamma = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)))
        >>> gamma.distribution(torch.tensor(0.7), torch.tensor(0.5)).mean
        tensor(0.7000)
    """

    fn: Callable[[Tensor, Tensor], Any]

    def __post_init__(self) -> None:
        if not callable(self.fn) or isinstance(self.fn, Distribution):
            raise TypeError(
                "MeanParameterized needs a function from (mean, spread) to a distribution, such "
                f"as lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)), got {self.fn!r}"
            )

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        return self.fn(*torch.broadcast_tensors(h, spread))

    def check_range(self, low: float, high: float, closed: bool, transition: str) -> None:
        """Builds the law at states across the range, and looks at its parameters and its mean.

        A law that does not know its mean is taken at its word. Arguments as in :class:`Noise`.

        Raises:
            TypeError: if ``fn`` returns no distribution.
            ValueError: if for some state that is not univariate, not defined, without the
                state in the span of its support, or of another mean.
        """
        states = _states(low, high, closed)
        laws = [self._law(state) for state in states]
        example = next((law for law in (*laws, self._law(torch.full((1, 1), 0.5))) if law), self.fn)
        name = getattr(example, "__name__", type(example).__name__)
        for state, law in zip(states, laws):
            if law is None:
                ends = f"[{low:g}, {high:g})" if closed else f"({low:g}, {high:g})"
                raise ValueError(
                    f"MeanParameterized({name}) is not defined for the mean {state.item():.3g}, "
                    f"which lies in the range {ends} of the {transition} transition; choose a "
                    "family whose support contains that range, or Additive"
                )
            try:
                mean = law.mean
            except NotImplementedError:
                continue
            if not torch.allclose(mean, state.to(mean.dtype), rtol=1e-3, atol=1e-4):
                raise ValueError(
                    f"MeanParameterized({name}) must have the state as its mean, got mean "
                    f"{mean.item():.4g} for the state {state.item():.4g}; rescale its parameters"
                )

    def inside(self, h: Tensor, low: float, high: float, closed: bool) -> Tensor:
        eps = torch.finfo(h.dtype).eps
        return h.clamp(low if closed else low + eps, high - eps)

    def _law(self, state: Tensor) -> Any:
        """The law with a given mean, or None where it is not defined."""
        try:
            law = self.distribution(state, torch.full_like(state, 0.25))
        except ValueError:  # torch's own validation, which may be switched off
            return None
        if not isinstance(law, Distribution):
            raise TypeError(f"MeanParameterized needs fn to return a distribution, got {law!r}")
        if law.batch_shape != state.shape or law.event_shape:
            raise ValueError(
                "MeanParameterized needs fn to return one univariate distribution for each mean, "
                f"got batch shape {tuple(law.batch_shape)} and event shape "
                f"{tuple(law.event_shape)} for means with shape {tuple(state.shape)}"
            )
        for name, constraint in law.arg_constraints.items():
            value = getattr(law, name)
            valid = constraints.is_dependent(constraint) or constraint.check(value).all()
            if not (valid and value.isfinite().all()):
                return None
        least, greatest = bounds(law.support)
        # Not every torch refuses a Uniform from 0 to 0.
        return law if least <= state.item() <= greatest and least < greatest else None


def _states(low: float, high: float, closed: bool) -> list[Tensor]:
    """States across a range, close to its ends and at the one that belongs to it."""
    start, end = max(low, -10.0), min(high, 10.0)
    parts = torch.tensor([0.001, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.999])
    states = (start + (end - start) * parts).reshape(-1, 1, 1)
    return [*([torch.full((1, 1), low)] if closed else []), *states]


#: Named bases for the command line and quick experiments: from the spread γ to a distribution.
#: See :func:`family`.
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

    Whatever the family, γ is the standard deviation (or the coefficient of variation); what
    differs is the shape of ε, which has mean 0 and variance 1:

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
        spread: the γ it will be used with; only ``bernoulli`` depends on it.

    Raises:
        ValueError: if the name or the injection is unknown, or the spread not positive.

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
