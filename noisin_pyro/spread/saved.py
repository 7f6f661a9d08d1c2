"""Spreads in state dicts: γ keeps its value where its floor is another one than when it was saved.

A learned γ is ``floor + exp(raw)``, and a state dict of Pyro contains ``raw`` alone. Here it
contains the floor too, under the name of γ and ``_floor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisin_pyro.spread.base import FLOOR, Spread
from noisin_pyro.spread.fixed import Fixed
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.number import is_number, rounds_to

__all__ = ["SavesSpreads", "floor_entry", "move_to_floor"]

_ENDINGS = ("", "_unconstrained")  # suffixes of a γ's name among the parameters

if TYPE_CHECKING:

    class _Base(nn.Module):
        pass
else:
    _Base = object


class SavesSpreads(_Base):
    """A base, before ``nn.Module``, of modules with spreads, for their state dicts.

    Subclasses define ``_spread_names``, the names of all γ that a module can have, and
    ``_spread_prefix``, with which these names, and no others, begin.
    """

    _spread_names: Sequence[str]
    _spread_prefix: str
    _spreads: dict[str, Spread]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Also keeps a γ that is a number exact under ``double()``, and under ``to_empty``."""
        numbers = {name: gamma for name, gamma in self._numbers.items() if self._holds(name, gamma)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, gamma in numbers.items():
            self._buffers[name].fill_(gamma)  # type: ignore[union-attr]
        return self

    def _holds(self, name: str, gamma: float) -> bool:
        """Whether a buffer has the value that it was made with, which loading may change."""
        here = self._buffers.get(name)
        return here is not None and not here.is_meta and rounds_to(gamma, here)

    def _set_floor(self, name: str, value: Tensor) -> None:
        """Sets the buffer of a floor, for programs that load each entry of a state dict by name.

        Raises:
            AttributeError: if that would be another floor.
        """
        value, floor = value.detach(), self._floors[name.removesuffix(FLOOR)]
        if not rounds_to(floor, value):
            raise AttributeError(
                f"{name} is {floor} here and cannot be set to {float(value):g}; build the γ with "
                f"Learned(..., lower={float(value):g})"
            )
        self._buffers[name] = value

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Also saves the floor of each learned γ, in float64."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, floor in self._floors.items():
            destination.update(floor_entry(prefix + name, floor))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Loads a state dict, also one of a torch module or of an RNN with other noises.

        A γ that the state dict lacks keeps its value, and a γ that this module lacks is ignored.
        A learned γ keeps its value where its floor here is another one.
        """
        for name, floor in self._floors.items():
            move_to_floor(state_dict, prefix + name, floor, errors)
        for name in (name + ending for name in self._spread_names for ending in _ENDINGS):
            saved = state_dict.get(prefix + name)
            here = self._parameters.get(name, self._buffers.get(name))
            if saved is not None and here is not None and not here.dim() and saved.numel() != 1:
                errors.append(  # torch would silently load the first of them
                    f"size mismatch for {prefix + name}: each of {saved.numel()} units has its own "
                    "γ in what was saved, and here one γ serves all"
                )
        absent: list[str] = []
        surplus: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, absent, surplus, errors)
        of_spreads = prefix + self._spread_prefix
        missing.extend(key for key in absent if not key.startswith(of_spreads))
        unexpected.extend(key for key in surplus if not key.startswith(of_spreads))

    @property
    def _numbers(self) -> dict[str, float]:
        """The γ that were given as numbers, by their names."""
        fixed = {name: one.value for name, one in self._spreads.items() if isinstance(one, Fixed)}
        return {name: float(gamma) for name, gamma in fixed.items() if is_number(gamma)}

    @property
    def _floors(self) -> dict[str, float]:
        """The floors of the γ that are learned, by their names."""
        learned = {name: self._spreads.get(name) for name in self._spread_names}
        return {name: one.lower for name, one in learned.items() if isinstance(one, Learned)}


def floor_entry(name: str, floor: float) -> dict[str, Tensor]:
    """The entry of a state dict with the floor of a learned γ.

    Args:
        name: the name of γ in the state dict.
        floor: its floor.

    Example:
        >>> floor_entry("spread_l0", 0.25)
        {'spread_l0_floor': tensor(0.2500, dtype=torch.float64)}
    """
    return {name + FLOOR: torch.tensor(floor, dtype=torch.float64, device="cpu")}


def move_to_floor(state_dict: Any, name: str, floor: float, errors: list[str]) -> None:
    """Changes the raw value of a learned γ in a state dict, so that γ stays what it was.

    Args:
        state_dict: the state dict, which gets this floor, and another raw value if it had another.
        name: the name of γ in it.
        floor: the floor of γ in the module that loads it.
        errors: gets a sentence if γ is not above that floor.
    """
    key = f"{name}_unconstrained"
    raw, saved = state_dict.get(key), state_dict.get(name + FLOOR)
    if raw is None:
        return
    state_dict[name + FLOOR] = torch.tensor(floor, dtype=raw.dtype, device=raw.device)
    if saved is None or rounds_to(floor, saved):
        return
    gamma = float(saved) + raw.detach().double().exp()
    if bool((gamma > floor).all()):
        state_dict[key] = (gamma - floor).log().to(raw.dtype)
    else:
        errors.append(
            f"{name} was learned above {float(saved):g} and ended at {float(gamma.min()):g}, which "
            f"the floor {floor:g} here excludes; build it with Learned(..., "
            f"lower={float(saved):g})"
        )
