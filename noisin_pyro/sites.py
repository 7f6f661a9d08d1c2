"""Sample sites of a module, which outside a Pyro program are plain draws.

A noisy RNN is also a layer for a plain PyTorch loop. There no statement reaches Pyro, and no
parameter its global store: a second module of the same name would share what it found there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyro
import pyro.poutine as poutine
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from noisin_pyro.layers.layer import length_mask

__all__ = ["Freezable", "Plates", "Sites", "in_context", "own_store"]

Plates = tuple[Any, Any]
"""The ``time`` (dim −2) and ``batch`` (dim −1) plates of a model."""

P = ParamSpec("P")
T = TypeVar("T")
Module = TypeVar("Module", bound=PyroModule)


class Sites:
    """Names, plates and mask of the sites that one call of a module issues.

    Args:
        module: the module whose Pyro name is their prefix.
        steps: T.
        batch: B.
        lengths: each sequence's number of steps, with shape (B,); sites count only these.
        plates: the plates of a surrounding model, not yet entered; by default the module's own.
    """

    def __init__(
        self,
        module: PyroModule,
        steps: int,
        batch: int,
        lengths: Tensor | None = None,
        plates: Plates | None = None,
    ) -> None:
        self.active = am_i_wrapped()
        self.mask = None if lengths is None else length_mask(lengths, steps)
        self._module, self._shape, self._plates = module, (steps, batch), plates

    @property
    def plates(self) -> Plates | None:
        """The plates of all sites, None outside Pyro; a module's own are made when first used."""
        if self.active and self._plates is None:
            steps, batch = self._shape
            self._plates = (
                pyro.plate(self._name("time"), steps, dim=-2),
                pyro.plate(self._name("batch"), batch, dim=-1),
            )
        return self._plates if self.active else None

    def sample(self, name: str, law: Any, obs: Tensor | None = None) -> Tensor:
        """A value for each step of each sequence; ``law`` has batch shape (\\*S, T, B)."""
        return self._sample(name, law, obs, self.plates or (), self.mask)

    def sample_once(self, name: str, law: Any) -> Tensor:
        """A value for each sequence; ``law`` has batch shape (\\*S, 1, B)."""
        return self._sample(name, law, None, (self.plates or ())[1:], None)

    def sample_step(self, name: str, law: Any, step: int) -> Tensor:
        """A value for one step of each sequence; ``law`` has batch shape (\\*S, 1, B)."""
        mask = None if self.mask is None else self.mask[step : step + 1]
        return self._sample(name, law, None, (self.plates or ())[1:], mask)

    def record(self, name: str, value: Tensor) -> None:
        """A deterministic site for z or h, with shape (\\*S, T, B, H); nothing reads it back."""
        if self.plates is not None:
            time, batch = self.plates
            with time, batch:
                pyro.deterministic(self._name(name), value, event_dim=1)

    def record_state(self, name: str, value: Tensor) -> None:
        """A deterministic site for a final state, with shape (\\*S, L, B, H).

        It stands in the ``batch`` plate alone. A time plate in which every site stands would
        tell Pyro that the steps of a sequence are independent, and the importance weights of
        ``RenyiELBO`` would be taken per step instead of per sequence.
        """
        if self.plates is not None:
            value = value.movedim(-3, -2).unsqueeze(-4)  # (*S, 1, B, L, H)
            with self.plates[1]:
                pyro.deterministic(self._name(name), value, event_dim=2)

    def _name(self, name: str) -> str:
        return self._module._pyro_get_fullname(name)

    def _sample(self, name: str, law: Any, obs: Any, plates: Sequence[Any], mask: Any) -> Tensor:
        if not self.active:
            return law() if obs is None else obs  # type: ignore[no-any-return]
        with ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            if mask is not None:
                stack.enter_context(poutine.mask(mask=mask))
            return pyro.sample(self._name(name), law, obs=obs)


class Freezable:
    """A base, before ``PyroModule``, of modules whose frozen parameters stay so in Pyro programs.

    ``PyroModule`` makes every ``nn.Parameter`` that it reads a statement, and the param store makes
    whatever it holds require a gradient (pyro issue 3438). Frozen ones are no statements here,
    as ``pyro.module`` has it.
    """

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("_parameters", {}).get(name)
        if found is not None and not (found.requires_grad and self._pyro_context.active):
            return found
        return super().__getattr__(name)  # type: ignore[misc]


def in_context(
    method: Callable[Concatenate[Module, P], T],
) -> Callable[Concatenate[Module, P], T]:
    """A ``pyro_method`` that outside a Pyro program leaves the global param store alone."""

    @wraps(method)
    def call(self: Module, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._pyro_context if am_i_wrapped() else own_store():
            return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


@contextmanager
def own_store() -> Iterator[None]:
    """A param store thrown away at the end: modules inside hold on to their own parameters."""
    with pyro.get_param_store().scope():
        yield
