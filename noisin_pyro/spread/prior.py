"""A spread γ that is a random variable with a prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from noisin_pyro.noise.moments import bounds
from noisin_pyro.spread.base import Spread, hold

__all__ = ["ComputedPrior", "Prior"]


class Prior(Spread):
    """A random γ.

    Args:
        distribution: a Pyro distribution over positive numbers, with batch shape () and event
            shape () or (H,).

    Raises:
        ValueError: if its support contains other numbers.
    """

    def __init__(self, distribution: Any) -> None:
        _check_support(distribution)
        self.distribution, self.per_unit = distribution, bool(distribution.event_shape)

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        _check_shape(self.distribution, units)
        hold(module, name, PyroSample(self.distribution))

    def describe(self, module: PyroModule, name: str) -> str:
        return str(self.distribution)


class ComputedPrior(Spread):
    """A random γ whose prior depends on other random variables or parameters of the module.

    Args:
        function: from the module to a distribution as in :class:`Prior`, whose batch shape is that
            of the plates that it is drawn in.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        hold(module, name, PyroSample(_Checked(self.function, units)))

    def _is_per_unit(self, module: PyroModule) -> bool:
        return bool(self.function(module).event_shape)

    def describe(self, module: PyroModule, name: str) -> str:
        return "a prior computed by a function"


@dataclass(frozen=True)
class _Checked:
    """The function of a :class:`ComputedPrior`, with checks of what it returns."""

    function: Callable[[Any], Any]
    units: int

    def __call__(self, module: Any) -> Any:
        prior = self.function(module)
        if not isinstance(prior, TorchDistributionMixin):
            raise TypeError(
                "the function of a prior on the spread must return a distribution of "
                f"pyro.distributions, got {type(prior).__name__}"
            )
        _check_support(prior)
        _check_shape(prior, self.units, _entered())
        return prior


def _check_support(prior: Any) -> None:
    """Raises ValueError unless a prior on γ is over positive numbers."""
    support = prior.support
    low, _ = bounds(support)
    if low < 0 or (low == 0 and support.is_discrete):
        raise ValueError(
            f"a prior on the spread must be over positive numbers, got {prior} with "
            f"support {support}; use for example dist.LogNormal or dist.Gamma"
        )


def _check_shape(prior: Any, units: int, plates: tuple[int, int] = (0, 0)) -> None:
    """Checks the shape of a prior on γ.

    Args:
        prior: the prior.
        units: H.
        plates: the sizes of the plates that it is drawn in at dim −2 and −1, 0 where there is none.
            Particles, whose dimensions are further left, are not checked.

    Raises:
        ValueError: unless it has event shape () or (H,), and the batch shape of the plates.
    """
    shape = tuple(prior.batch_shape)
    batched = all(size in (1, plate) for size, plate in zip(shape[::-1], plates[::-1]))
    if not batched or tuple(prior.event_shape) not in ((), (units,)):
        raise ValueError(
            f"a prior on the spread must have batch shape () and event shape () or ({units},), "
            f"got {shape} and {tuple(prior.event_shape)}; "
            "use .expand([hidden_size]).to_event(1) for one spread per unit"
        )


def _entered() -> tuple[int, int]:
    """The sizes of the plates that have been entered at dim −2 and −1, 0 where there is none."""
    entered = {m.dim: m for m in _PYRO_STACK if isinstance(m, IndepMessenger)}
    plates: list[Any] = [entered.get(-2), entered.get(-1)]
    first, last = (0 if m is None else getattr(m, "subsample_size", m.size) for m in plates)
    return first, last
