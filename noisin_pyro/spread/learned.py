"""A spread γ learned with the weights: empirical Bayes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints, transform_to

from noisin_pyro.spread.base import FLOOR, Spread, device_of, hold
from noisin_pyro.spread.number import is_number

__all__ = ["Learned"]


@dataclass(frozen=True)
class Learned(Spread):
    """A spread learned with the weights: γ = lower + exp(raw), a constrained ``pyro.param``.

    Training drives γ to ``lower``, so keep a floor or stop on held-out data (§3, "Learning
    procedure", of https://arxiv.org/abs/1805.01500v1). For one layer with ``noise_to="output"`` and
    an emission that is log-concave in z, Jensen's inequality shows that the objective is largest at
    γ = 0 for any weights. In other models this is not guaranteed, but it is what happens in
    practice.

    Under Pyro's own objectives (``SVI``, ``Trace_ELBO()(model, guide)``) γ is in the global param
    store under its name, as every Pyro parameter is. A second model with the same name would use
    that γ, so clear the store between models. A store loaded from a file keeps the floor of the γ
    in it, whatever ``lower`` is here, so load weights by state dict. :class:`NoisinELBO` as a
    module and plain PyTorch loops do not use the store.

    Weight decay acts on γ as on weights, unless :func:`spread_parameters` get their own group. The
    state dict of a noisy RNN contains ``raw`` and ``lower``. Loaded under another ``lower`` γ keeps
    its value; it is an error if that is not above the new ``lower``.

    Args:
        init: the initial value.
        lower: the floor of γ; 0 requires only γ > 0 and warns.
        per: ``"layer"`` learns one γ for all units of a layer, as in the paper; ``"unit"`` learns
            one for each unit.

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
            if not is_number(value):
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

    @property
    def per_unit(self) -> bool:  # type: ignore[override]
        """Whether each unit learns its own γ."""
        return self.per == "unit"

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        """Makes γ a ``PyroParam``, and its floor a buffer; see :meth:`Spread.attach`.

        The buffer is for programs that take each entry of a state dict for a parameter or a buffer.
        Only state dicts are written with the floor, and γ is computed from ``lower``.

        Raises:
            ValueError: if ``init`` does not exceed ``lower`` after rounding to the dtype.
        """
        shape = (units,) if self.per_unit else ()
        support = constraints.greater_than(self.lower) if self.lower else constraints.positive
        value = torch.full(shape, float(self.init), dtype=like.dtype, device=device_of(like))
        if not support.check(value).all():
            raise ValueError(
                f"the learned spread must start above its floor {self.lower}, got "
                f"{self.init}, which is no larger in {like.dtype}; raise init or lower the floor"
            )
        hold(module, name, PyroParam(value, support, event_dim=len(shape)))
        module.register_buffer(name + FLOOR, value.new_tensor(self.lower))

    def reset(self, module: PyroModule, name: str) -> None:
        constraint, _ = module._pyro_params[name]
        raw = module._parameters[f"{name}_unconstrained"]
        assert raw is not None
        start = torch.full(raw.shape, float(self.init), dtype=raw.dtype, device=raw.device)
        with torch.no_grad():
            raw.copy_(transform_to(constraint).inv(start))

    def describe(self, module: PyroModule, name: str) -> str:
        return f"{super().describe(module, name)} (learned)"
