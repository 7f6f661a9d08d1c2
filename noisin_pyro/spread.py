"""The spread γ of a layer: fixed, learned by empirical Bayes, or with a prior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

import torch
from pyro.nn import PyroParam, PyroSample
from torch.distributions import Distribution, constraints

__all__ = ["Learned", "Spread", "attribute", "per_layer"]


@dataclass(frozen=True)
class Learned:
    """A spread learned with the weights: γ = lower + exp(raw), a constrained ``pyro.param``.

    The objective alone drives γ to ``lower``, because noise only costs likelihood on the data
    it trains on (the paper's §3, "Learning procedure"); so keep a floor, or stop on held-out
    data.

    Args:
        init: the value to start from.
        lower: the floor; 0 leaves only γ > 0, and warns.
        per: ``"layer"`` shares γ among a layer's units, as the paper does; ``"unit"`` learns
            one for each.

    Raises:
        ValueError: if ``lower`` is negative, ``init`` does not exceed it, or ``per`` is unknown.

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
        if not (math.isfinite(self.lower) and self.lower >= 0):
            raise ValueError(f"lower must be finite and at least 0, got {self.lower}")
        if not (math.isfinite(self.init) and self.init > self.lower):
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


Spread = Union[float, Learned, Distribution]


def per_layer(given: Any, layers: int, what: str) -> list[Any]:
    """One value per layer from one value or a sequence of them.

    Raises:
        ValueError: if a sequence's length is not the number of layers.
    """
    if not isinstance(given, Sequence):
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

    A spread per layer has shape (), one per unit shape (H,).

    Raises:
        ValueError: if a fixed spread is not positive and finite.
        TypeError: if it is none of a number, :class:`Learned` and a distribution.
    """
    if isinstance(spread, Learned):
        shape = (units,) if spread.per == "unit" else ()
        event_dim = len(shape)
        support = constraints.greater_than(spread.lower) if spread.lower else constraints.positive
        return PyroParam(
            torch.full(shape, float(spread.init), dtype=dtype, device=device), support, event_dim
        )
    if isinstance(spread, Distribution):
        return PyroSample(spread)
    if isinstance(spread, bool) or not isinstance(spread, (int, float)):
        raise TypeError(
            f"spread must be a number, Learned(...) or a distribution, got {spread!r}"
        )
    if not (math.isfinite(spread) and spread > 0):
        raise ValueError(
            f"spread must be positive and finite, got {spread}; "
            "use noise=None for a deterministic RNN"
        )
    return torch.tensor(float(spread), dtype=dtype, device=device)
