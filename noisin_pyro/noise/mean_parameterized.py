"""Noise from a distribution parameterised by its mean: z ~ fn(mean=h, spread=γ)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from noisin_pyro.noise.base import Noise, Range
from noisin_pyro.noise.moments import bounds

__all__ = ["MeanParameterized"]


@dataclass(frozen=True)
class MeanParameterized(Noise):
    """z ~ fn(mean=h, spread=γ), such as a Gamma on a positive state or a Beta on a sigmoid state.

    ``fn`` defines the meaning of γ. There is one sample site for each layer and timestep, also with
    ``sites="sequence"``, because the noise cannot be drawn before h_t is known. If the distribution
    has no ``rsample``, the objectives use the score-function gradient.

    Args:
        fn: a function from (mean, spread), both with shape (\\*, B, H), to a distribution (of Pyro
            or torch) with that batch shape and mean ``mean``. Its support must contain the
            transition's range. For states in half precision it gets float32, and z is rounded.

    Raises:
        TypeError: if ``fn`` cannot be called.
        ValueError: if it is a module with parameters.

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
        if isinstance(self.fn, nn.Module) and any(True for _ in self.fn.parameters()):
            raise ValueError(
                "MeanParameterized owns no parameter, got an nn.Module whose parameters no "
                "optimizer would see; learn the RNN's spread, or freeze the values in a function"
            )

    def distribution(self, h: Tensor, spread: Tensor) -> Any:
        # torch cannot sample a Gamma, among others, in half precision.
        work = torch.promote_types(h.dtype, torch.float32)
        return self.fn(*torch.broadcast_tensors(h.to(work), spread.to(work)))

    def check_range(self, states: Range, transition: str) -> None:
        """Checks the distribution at several states across the range, for γ = 0.25.

        The mean is not checked if the distribution does not implement ``.mean``. Arguments as in
        :meth:`Noise.check_range`.

        Raises:
            TypeError: if ``fn`` returns no distribution.
            ValueError: if at some state the distribution is not univariate, has invalid parameters,
                has a support that does not contain the state, or has another mean.
        """
        with torch.device("cpu"):  # a model may be built on the meta device
            means = _examples(states)
            built = [self._at(mean) for mean in means]
            example = next((d for d in (*built, self._at(torch.full((1, 1), 0.5))) if d), self.fn)
        name = getattr(example, "__name__", type(example).__name__)
        for mean, distribution in zip(means, built):
            if distribution is None:
                raise ValueError(
                    f"MeanParameterized({name}) is not defined for the mean {mean.item():.3g}, "
                    f"which lies in the range {states} of the {transition} transition; choose a "
                    "family whose support contains that range, or Additive"
                )
            try:
                known = distribution.mean
            except NotImplementedError:
                continue
            if not torch.allclose(known, mean.to(known.dtype), rtol=1e-3, atol=1e-4):
                raise ValueError(
                    f"MeanParameterized({name}) must have the state as its mean, got mean "
                    f"{known.item():.4g} for the state {mean.item():.4g}; rescale its parameters"
                )

    def clamp(self, h: Tensor, states: Range) -> Tensor:
        eps = torch.finfo(h.dtype).eps
        low, high = (eps * max(1.0, abs(end)) if math.isfinite(end) else 0.0 for end in states[:2])
        inside = h.clamp(states.low if states.closed else states.low + low, states.high - high)
        return torch.where((inside - h).abs() <= 4 * max(low, high), inside, h)

    def _at(self, mean: Tensor) -> Any:
        """The distribution with a given mean, or None if its parameters or support do not fit."""
        try:
            built = self.distribution(mean, torch.full_like(mean, 0.25))
        except ValueError:  # by torch's validation, which a user may switch off
            return None
        if not isinstance(built, Distribution):
            raise TypeError(f"MeanParameterized needs fn to return a distribution, got {built!r}")
        if built.batch_shape != mean.shape or built.event_shape:
            raise ValueError(
                "MeanParameterized needs fn to return one univariate distribution for each mean, "
                f"got batch shape {tuple(built.batch_shape)} and event shape "
                f"{tuple(built.event_shape)} for means with shape {tuple(mean.shape)}"
            )
        for name, constraint in built.arg_constraints.items():
            value = getattr(built, name)
            valid = constraints.is_dependent(constraint) or constraint.check(value).all()
            if not (valid and value.isfinite().all()):
                return None
        least, greatest = bounds(built.support)
        # Some versions of torch accept a Uniform from 0 to 0.
        return built if least <= mean.item() <= greatest and least < greatest else None


def _examples(states: Range) -> list[Tensor]:
    """States near the ends of a range, between, and at a closed end; each with shape (1, 1)."""
    start, end = max(states.low, -10.0), min(states.high, 10.0)
    parts = torch.tensor([0.001, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.999])
    inner = (start + (end - start) * parts).reshape(-1, 1, 1)
    return [*([torch.full((1, 1), states.low)] if states.closed else []), *inner]
