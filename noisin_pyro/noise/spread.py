"""The spread γ of a layer: fixed, learned by empirical Bayes, or with a prior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeGuard

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroParam, PyroSample
from torch.distributions import Distribution, constraints

from noisin_pyro.noise.standardized import bounds

__all__ = ["Learned", "Spread", "attribute", "per_layer"]


@dataclass(frozen=True)
class Learned:
    """A spread learned with the weights: γ = lower + exp(raw), a constrained ``pyro.param``.

    The objective alone drives γ to ``lower`` (the paper's §3, "Learning procedure"); so keep a
    floor, or stop on held-out data. For one layer with ``noise_to="output"`` and an emission that
    is log-concave in z, the objective is largest at γ = 0 for any weights, by Jensen's inequality;
    beyond that it is not guaranteed, but it is what happens in practice.

    Under Pyro's own objectives (``SVI``, ``Trace_ELBO()(model, guide)``) γ stands in the global
    param store by its name, as all Pyro parameters do, and a second model of the same name takes
    what it finds there. Clear the store in between, or build both under
    ``pyro.settings.set(module_local_params=True)``; :class:`NoisinELBO` as a module and plain
    PyTorch loops never use the store.

    Args:
        init: the value to start from.
        lower: the floor; 0 leaves only γ > 0, and warns.
        per: ``"layer"`` shares γ among a layer's units, as the paper does; ``"unit"`` learns
            one for each.

    Raises:
        TypeError: if ``init`` or ``lower`` is no number.
        ValueError: if ``lower`` is negative, ``init`` does not exceed it, or ``per`` is unknown.

    Warns:
        UserWarning: if ``lower`` is 0.

    Example:
        >>> Learned(0.5)
        Learned(init=0.5, lower=0.1, per='layer')
    """

    init: float
    lower: float = 0.1
    per: Literal["layer", "unit"] = "layer"

    def __post_init__(self) -> None:
        if self.per not in ("layer", "unit"):
            raise ValueError(f"per must be 'layer' or 'unit', got {self.per!r}")
        for name, value in (("init", self.init), ("lower", self.lower)):
            if not _is_number(value):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if self.init <= self.lower:
            raise ValueError(
                f"the learned spread must start above its floor {self.lower}, got {self.init}; "
                "raise init or lower the floor"
            )
        if self.lower == 0:
            warnings.warn(
                "a learned spread without a floor is driven to zero, which leaves the "
                "deterministic RNN; give lower > 0 or stop on held-out data",
                stacklevel=3,
            )


Spread = float | Learned | Distribution
"""What a layer's ``spread=`` may be."""


def per_layer(given: Any, layers: int, what: str) -> list[Any]:
    """One value per layer from one value or a sequence of them.

    Args:
        given: the value, or a list or tuple of values.
        layers: the number of layers.
        what: what they are, for the error.

    Raises:
        ValueError: if a sequence's length is not the number of layers.

    Example:
        >>> per_layer(0.5, 2, "spread"), per_layer([0.5, 0.3], 2, "spread")
        ([0.5, 0.5], [0.5, 0.3])
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * layers
    if len(given) != layers:
        raise ValueError(
            f"{what} needs one value or one for each of the {layers} layers, got {len(given)}"
        )
    return list(given)


def attribute(
    spread: Spread, units: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | PyroParam | PyroSample:
    """What an RNN holds for a spread: a constant, a constrained parameter or a random one.

    Args:
        spread: a number, :class:`Learned` or a Pyro distribution over positive numbers, with
            batch shape () and event shape () or (H,).
        units: H.
        dtype, device: of the constant or the parameter.

    Returns:
        Something of shape (), or (H,) for a spread per unit.

    Raises:
        ValueError: if a fixed spread is not positive and finite, a learned one does not start
            above its floor once rounded to ``dtype``, or a prior is not over positive numbers
            or of another shape.
        TypeError: if it is none of a number, :class:`Learned` and a Pyro distribution.

    Example:
        >>> import torch
        >>> attribute(0.5, 8, torch.float32, torch.device("cpu"))
        tensor(0.5000)
    """
    if isinstance(spread, Learned):
        shape = (units,) if spread.per == "unit" else ()
        support = constraints.greater_than(spread.lower) if spread.lower else constraints.positive
        value = torch.full(shape, float(spread.init), dtype=dtype, device=device)
        if not support.check(value).all():
            raise ValueError(
                f"the learned spread must start above its floor {spread.lower}, got "
                f"{spread.init}, which is no larger in {dtype}; raise init or lower the floor"
            )
        return PyroParam(value, support, event_dim=len(shape))
    if isinstance(spread, TorchDistributionMixin):
        _check_prior(spread, units)
        return PyroSample(spread)
    if not _is_number(spread):
        raise TypeError(
            "spread must be a number, Learned(...) or a distribution from pyro.distributions, "
            f"got {spread!r}"
        )
    value = torch.tensor(float(spread), dtype=dtype, device=device)
    if not (value.isfinite() and value > 0):
        raise ValueError(
            f"spread must be positive and finite, got {spread}; "
            "use noise=None for a deterministic RNN"
        )
    return value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_prior(prior: Any, units: int) -> None:
    support = prior.support
    low, _ = bounds(support)
    if low < 0 or (low == 0 and support.is_discrete):
        raise ValueError(
            f"a prior on the spread must be over positive numbers, got {prior} with support "
            f"{support}; use for example dist.LogNormal or dist.Gamma"
        )
    if prior.batch_shape or tuple(prior.event_shape) not in ((), (units,)):
        raise ValueError(
            f"a prior on the spread must have batch shape () and event shape () or ({units},), "
            f"got {tuple(prior.batch_shape)} and {tuple(prior.event_shape)}; "
            "use .expand([hidden_size]).to_event(1) for one spread per unit"
        )
