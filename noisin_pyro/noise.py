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
from torch.distributions import Distribution

from noisin_pyro.standardized import LocationScale, Standardized, _tensors, moments, moved

__all__ = ["FAMILIES", "Additive", "MeanParameterized", "Multiplicative", "Noise", "family"]


class Noise:
    """A law p(z | h, γ) with E[z | h] = h. See :class:`Additive` and its siblings."""

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        """p(z | h) with batch shape of ``h``; ``spread`` must broadcast with ``h``."""
        raise NotImplementedError

    def check_range(self, low: float, high: float, closed: bool, transition: str) -> None:
        """Raises ValueError if a state in the given range cannot be the mean of this noise."""


@dataclass(frozen=True)
class _Standardizing(Noise):
    base: Distribution
    mean: float | None = field(default=None, kw_only=True)
    stddev: float | None = field(default=None, kw_only=True)
    _moved: dict[Any, Standardized] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.base, Distribution):
            raise TypeError(
                f"{name} needs a distribution such as dist.Normal(0.0, 1.0), got {self.base!r}"
            )
        if self.base.event_shape or self.base.batch_shape:
            raise ValueError(
                f"{name} needs a univariate base, got {self.base} with batch shape "
                f"{tuple(self.base.batch_shape)} and event shape {tuple(self.base.event_shape)}; "
                "give scalar parameters, one draw is made per hidden unit"
            )
        if any(tensor.requires_grad for tensor in _tensors(self.base)):
            raise ValueError(
                f"the base of {name} must carry no parameter, got {self.base} with one that "
                "requires a gradient; learn the RNN's spread instead"
            )
        mean, stddev = self.mean, self.stddev
        if mean is None or stddev is None:
            try:
                known = moments(self.base)
            except NotImplementedError:
                raise ValueError(
                    f"{self.base} knows no mean and variance of its own; "
                    f"give them as {name}(base, mean=..., stddev=...)"
                ) from None
            mean = known[0] if mean is None else mean
            stddev = known[1] if stddev is None else stddev
        if not (math.isfinite(mean) and math.isfinite(stddev) and stddev > 0):
            raise ValueError(
                f"{name} needs a base with finite mean and a finite, positive variance, got "
                f"{self.base} with mean {mean} and standard deviation {stddev}"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "stddev", stddev)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Standardizing:
        return self

    def epsilon(self, like: Tensor) -> Standardized:
        """The standardised ε, batch shape ``()``, in the dtype and on the device of ``like``."""
        key = (like.dtype, like.device)
        if key not in self._moved:
            assert self.mean is not None and self.stddev is not None
            self._moved[key] = Standardized(moved(self.base, *key), self.mean, self.stddev)
        return self._moved[key]

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
        stddev: its standard deviation, likewise.

    Raises:
        TypeError: if ``base`` is no distribution.
        ValueError: if it has a batch or event dimension, an infinite, zero or unknown variance,
            or a parameter that requires a gradient.

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
        >>> dropout = Multiplicative(dist.Bernoulli(0.8))
        >>> z = dropout.distribution(torch.tensor(2.0), torch.tensor(0.5))
        >>> z.enumerate_support()  # dropped, or kept and divided by 0.8
        tensor([0.0000, 2.5000])
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

    Example:
        >>> import torch, pyro.distributions as dist
        >>> gamma = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)))
        >>> gamma.distribution(torch.tensor(0.7), torch.tensor(0.5)).mean
        tensor(0.7000)
    """

    fn: Callable[[Tensor, Tensor], Any]

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        return self.fn(h, spread.expand_as(h) if spread.dim() <= h.dim() else spread)

    def check_range(self, low: float, high: float, closed: bool, transition: str) -> None:
        """Builds the law at means across the range and checks mean and support there."""
        means = _probes(low, high, closed)
        name = getattr(self.fn, "__name__", repr(self.fn))
        verdict = "is not defined there"
        try:
            law = self.fn(means, torch.full_like(means, 0.25))
            verdict = f"has support {law.support}"
            fits = bool(law.support.check(means).all()) or law.support.is_discrete
        except (ValueError, RuntimeError):
            fits = False
        if not fits:
            ends = f"[{low:g}, {high:g})" if closed else f"({low:g}, {high:g})"
            raise ValueError(
                f"MeanParameterized({name}) {verdict}, which does not contain the range {ends} "
                f"of the {transition} transition; choose a family whose support does, or Additive"
            )
        try:
            mean = law.mean
        except NotImplementedError:
            return
        if not torch.allclose(mean, means, rtol=1e-3, atol=1e-4):
            raise ValueError(
                f"MeanParameterized({name}) must have the state as its mean, got mean "
                f"{mean[-1]:.4g} for the state {means[-1]:.4g}; rescale its parameters"
            )


def _probes(low: float, high: float, closed: bool) -> Tensor:
    start = low if math.isfinite(low) else -10.0
    end = high if math.isfinite(high) else 10.0
    inner = torch.linspace(0.05, 0.95, 7) * (end - start) + start
    return torch.cat([torch.tensor([low]), inner]) if closed else inner


def _bernoulli(spread: float) -> Distribution:
    return dist.Bernoulli(1.0 / (1.0 + spread * spread))


#: Named bases for the command line and quick experiments: from the spread to a distribution.
#: Only ``bernoulli`` looks at the spread: its keep probability is 1/(1 + γ²), so that
#: multiplicative noise of spread γ is exactly inverted dropout.
FAMILIES: Mapping[str, Callable[[float], Distribution]] = MappingProxyType(
    {
        "gaussian": lambda spread: dist.Normal(0.0, 1.0),
        "laplace": lambda spread: dist.Laplace(0.0, 1.0),
        "logistic": lambda spread: dist.Logistic(0.0, 1.0),
        "gumbel": lambda spread: dist.Gumbel(0.0, 1.0),
        "gamma": lambda spread: dist.Gamma(2.0, 1.0),
        "beta": lambda spread: dist.Beta(2.0, 2.0),
        "bernoulli": _bernoulli,
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

    Args:
        name: one of :data:`FAMILIES`.
        injection: ``"additive"`` (z = h + γε) or ``"multiplicative"`` (z = h(1 + γε)).
        spread: the γ it will be used with; only ``bernoulli`` depends on it.

    Raises:
        ValueError: if the name or the injection is unknown.

    Example:
        >>> family("laplace", "multiplicative").base
        Laplace(loc: 0.0, scale: 1.0)
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown noise {name!r}; the known ones are {', '.join(FAMILIES)}")
    injections = {"additive": Additive, "multiplicative": Multiplicative}
    if injection not in injections:
        raise ValueError(f"unknown injection {injection!r}; choose additive or multiplicative")
    return injections[injection](FAMILIES[name](spread))
