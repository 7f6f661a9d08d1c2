"""From the values of ``spread=`` to spreads."""

from __future__ import annotations

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroSample
from torch import Tensor
from torch.distributions import Distribution

from noisin_pyro.spread.base import Spread
from noisin_pyro.spread.fixed import Fixed
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.number import is_number
from noisin_pyro.spread.prior import ComputedPrior, Prior

__all__ = ["SpreadLike", "as_spread"]

SpreadLike = float | Tensor | Learned | Distribution | PyroSample
"""The types of a layer's ``spread=``."""


def as_spread(given: SpreadLike | Spread) -> Spread:
    """Converts the value of ``spread=`` for a layer to a :class:`Spread`.

    Args:
        given: a number, a tensor or ``nn.Parameter`` with shape () or (H,), a :class:`Learned`, or
            a Pyro distribution (also as ``PyroSample``) over positive numbers, with batch shape ()
            and event shape () or (H,), or a ``PyroSample`` of a function from the module to one.

    Raises:
        ValueError: as :class:`Fixed` or :class:`Prior`.
        TypeError: if ``given`` has another type.

    Example:
        >>> as_spread(0.5), as_spread(Learned(0.5))
        (Fixed(0.5), Learned(init=0.5, lower=0.1, per='layer'))
    """
    if isinstance(given, PyroSample):
        given = given.prior if isinstance(given.prior, Distribution) else ComputedPrior(given.prior)
    if isinstance(given, Spread):
        return given
    if isinstance(given, TorchDistributionMixin):
        return Prior(given)
    if isinstance(given, Tensor) or is_number(given):
        return Fixed(given)
    raise TypeError(
        "spread must be a number, a tensor, Learned(...) or a distribution from "
        f"pyro.distributions, got {given!r}"
    )
