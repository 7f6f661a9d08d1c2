"""Unbiased additive and multiplicative noise from any distribution.

    Additive(base)            z = h + γ ε            Std[z | h] = γ
    Multiplicative(base)      z = h (1 + γ ε)        Std[z | h] = γ |h|

with ε = (x − μ)/σ, x ~ base. The three properties that §3 of the paper's first version
(https://arxiv.org/abs/1805.01500v1) requires of a noise hold by construction: E[z | h] = h, a free
spread γ, and the gradients of the original RNN. A noise is a frozen value; the spread γ is an
attribute of the RNN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.compound import parts_of, support_of
from noisin_pyro.noise.location_scale import LocationScale
from noisin_pyro.noise.moments import moments
from noisin_pyro.noise.moved import moved, tensors
from noisin_pyro.noise.standardized import Standardized

__all__ = ["Additive", "AffineNoise", "Multiplicative"]


def _check_base(name: str, base: Any) -> None:
    """Checks that a base is a univariate distribution with a support and without parameters.

    Args:
        name: the name of the noise's class, for the error.
        base: the base.

    Raises:
        TypeError: if it is no distribution.
        ValueError: if it has a batch or event dimension, a tensor that requires a gradient or is on
            the device meta, or no support.
    """
    if not isinstance(base, Distribution):
        raise TypeError(f"{name} needs a distribution such as dist.Normal(0.0, 1.0), got {base!r}")
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
    if any(tensor.is_meta for tensor in tensors(base)):
        raise ValueError(
            f"the base of {name} must have its numbers, got {base} on the device meta, which "
            "has none; make the noise outside of torch.device('meta')"
        )
    try:
        base.support  # noqa: B018
    except NotImplementedError:
        raise ValueError(
            f"{name} needs a base with a support, got {base}, which has none; add it to its class, "
            "such as support = constraints.real"
        ) from None


def _check_density(name: str, base: Distribution, mean: float) -> None:
    """Checks that a base has a normalised density for each of several values, and can be sampled.

    Raises:
        ValueError: if it has not, or cannot.
    """
    fix = "fit one to the samples, such as a Normal or a MixtureSameFamily"
    for part in parts_of(base):
        mask = getattr(part, "_mask", True)
        if not bool(torch.as_tensor(mask, device="cpu").all()):
            raise ValueError(
                f"{name} needs a base with a density, got {base}, whose mask removes it; give the "
                "distribution without .mask(False)"
            )
    if (
        any(support_of(part).is_discrete for part in parts_of(base))
        and not support_of(base).is_discrete
    ):
        raise ValueError(
            f"{name} needs a discrete base without transforms, got {base}; give the distribution "
            "inside it, since shift and scale have no effect"
        )
    exact = moved(base, torch.float64, torch.device("cpu"))
    values = torch.full((3, 2), mean, dtype=torch.float64, device="cpu")
    try:
        shape = exact.log_prob(values).shape
    except (NotImplementedError, RuntimeError):
        shape = None
    if shape != values.shape:
        reason = _failure(exact, values[0, 0]) or "does not take several values"
        raise ValueError(
            f"{name} needs a base with a density, got {base}, whose log_prob {reason}; {fix}"
        )
    if not all(type(part).__module__.startswith(("torch.", "pyro.")) for part in parts_of(base)):
        return  # a draw of a user's class may have effects of its own
    try:
        with torch.random.fork_rng(devices=[]):
            exact.sample((3,))
    except NotImplementedError:
        raise ValueError(
            f"{name} needs a base that can be sampled, got {base}, whose sample is not "
            "implemented; choose another base"
        ) from None


def _failure(base: Distribution, value: Tensor) -> str:
    """Why a base has no density for one value in double precision; empty if it has."""
    try:
        base.log_prob(value)
    except NotImplementedError:
        return "is not implemented"
    except RuntimeError as error:
        return f"fails in torch.float64 ({str(error).splitlines()[0]})"
    return ""


@dataclass(frozen=True)
class AffineNoise(Noise):
    """A noise z = h · m + a, where m and a are affine functions of a standardised draw ε."""

    base: Distribution
    mean: float | None = field(default=None, kw_only=True)
    stddev: float | None = field(default=None, kw_only=True)
    _cache: dict[Any, Standardized] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        name, base = type(self).__name__, self.base
        _check_base(name, base)
        known = moments(base)
        mean = self._known_or_given("mean", known[0], known[1])
        stddev = self._known_or_given("stddev", known[1], known[1])
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
        _check_density(name, base, mean)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "stddev", stddev)

    def _known_or_given(self, name: str, known: float, scale: float) -> float:
        """The moment that the base implements, or else the user's.

        Args:
            name: ``"mean"`` or ``"stddev"``.
            known: the base's moment, NaN if it implements none.
            scale: the base's standard deviation, for the tolerance.

        Raises:
            ValueError: if the user's moment differs from the base's.
        """
        given: float | None = getattr(self, name)
        if given is None or math.isinf(known):
            return known
        if math.isnan(known):
            return float(given)
        if not math.isclose(given, known, rel_tol=1e-4, abs_tol=1e-4 * scale):
            raise ValueError(
                f"{name}={given} contradicts {self.base}, whose {name} is {known:.6g}; leave it out"
            )
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> AffineNoise:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": {}}  # its tensors may be on a GPU that a reader lacks

    def standardized(self, like: Tensor) -> Standardized:
        """The distribution of ε, with batch shape ``()`` and the dtype and device of ``like``.

        Args:
            like: any floating-point tensor.
        """
        # Tensors made in inference mode cannot be used in training.
        key = (like.dtype, like.device, torch.is_inference_mode_enabled())
        found = self._cache.get(key)
        if found is None:
            assert self.mean is not None and self.stddev is not None
            found = Standardized(self.base, self.mean, self.stddev, like=like)
            if found.is_concrete:  # torch.export makes tensors without values
                self._cache[key] = found
        return found

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The pair (m, a) of z = h · m + a, with None for m = 1 or a = 0.

        Args:
            epsilon: ε, with shape (\\*, T, B, H).
            spread: γ, broadcastable with ``epsilon``.

        Returns:
            m and a, each None or with the broadcast shape of the arguments.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Additive(AffineNoise):
    """z = h + γ ε: the spread γ is the standard deviation of z given h.

    Args:
        base: any univariate distribution with finite mean and variance, of Pyro or torch. ε is
            standardised, so that the base's location and scale have no effect.
        mean: its mean, needed only for a base that does not implement ``mean``.
        stddev: its standard deviation (not its variance), needed only for a base that does not
            implement ``variance``.

    Raises:
        TypeError: if ``base`` is no distribution.
        ValueError: if ``base`` has a batch or event dimension, an infinite, zero or unknown
            variance, no density or support, a parameter that requires a gradient, a tensor on the
            device meta, or moments that contradict ``mean`` or ``stddev``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> noise = Additive(dist.Laplace(0.0, 1.0))
        >>> z = noise.distribution(torch.tensor([-1.0, 2.0]), torch.tensor(0.3))
        >>> z.mean, z.stddev
        (tensor([-1.,  2.]), tensor([0.3000, 0.3000]))
    """

    def distribution(self, h: Tensor, spread: Tensor) -> LocationScale:
        return LocationScale(self.standardized(h), h, spread)

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[None, Tensor]:
        return None, spread * epsilon


@dataclass(frozen=True)
class Multiplicative(AffineNoise):
    """z = h (1 + γ ε): the spread γ is the coefficient of variation of z given h.

    ``base = dist.Bernoulli(k)`` with γ = sqrt((1 − k)/k) is inverted dropout with keep probability
    k. Arguments and errors are those of :class:`Additive`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> dropout = Multiplicative(dist.Bernoulli(0.5))
        >>> z = dropout.distribution(torch.tensor(3.0), torch.tensor(1.0))
        >>> z.enumerate_support()  # dropped, or kept and divided by 0.5
        tensor([0., 6.])
    """

    def distribution(self, h: Tensor, spread: Tensor) -> LocationScale:
        return LocationScale(self.standardized(h), h, h * spread)

    def affine(self, epsilon: Tensor, spread: Tensor) -> tuple[Tensor, None]:
        return torch.addcmul(epsilon.new_ones(()), spread, epsilon), None
