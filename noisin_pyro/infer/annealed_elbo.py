"""An ELBO between the NOISIN objective and the full one: its KL is weighted."""

from __future__ import annotations

import math
from typing import Any

from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger

__all__ = ["AnnealedELBO"]


class AnnealedELBO(Trace_ELBO):
    """E_q [log p(y | z)] − β KL(q(z) ‖ p(z)): ``Trace_ELBO`` with a weight β on the KL.

    β may be set between steps (KL annealing, Bowman et al. 2016). At β = 1 it is ``Trace_ELBO``,
    at β = 0 any guide is scored by the likelihood term alone; with a :class:`PriorGuide` the KL
    is empty and every β gives the NOISIN objective.

    Args:
        kl_weight: β, at least 0.
        **options: those of ``pyro.infer.Trace_ELBO``.

    Raises:
        ValueError: if β is negative or not finite.

    Example:
        >>> elbo = AnnealedELBO(0.0)
        >>> for epoch in range(4):
        ...     elbo.kl_weight = min(1.0, epoch / 2)
        >>> elbo.kl_weight
        1.0
    """

    def __init__(self, kl_weight: float = 1.0, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.kl_weight = kl_weight

    @property
    def kl_weight(self) -> float:
        """β."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"kl_weight must be at least 0 and finite, got {value}; 1 is the ELBO")
        self._kl_weight = value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        weighted = _Weighted(self.kl_weight)
        return super()._get_trace(  # type: ignore[no-untyped-call]
            weighted(model), weighted(guide), args, kwargs
        )


class _Weighted(Messenger):
    """Scales the log-probability of latent sites; ``poutine.scale`` would scale all."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self._weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self._weight
