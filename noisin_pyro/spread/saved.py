"""Spreads in state dicts: γ keeps its value where its floor is another one than when it was saved.

A learned γ is ``floor + exp(raw)``, and a state dict of Pyro or torch contains ``raw`` alone. Here
it contains the floor too, under the name of γ and ``_floor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisin_pyro.spread.base import Spread
from noisin_pyro.spread.learned import Learned

__all__ = ["FLOOR", "SavesSpreads", "floor_entry", "move_to_floor"]

FLOOR = "_floor"  # suffix of the entry of a state dict that holds the floor of a learned γ
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

    def __getattr__(self, name: str) -> Any:
        """Also the floor of a learned γ, since distributed checkpoints read each entry by name."""
        if name.endswith(FLOOR) and name.removesuffix(FLOOR) in self._floors:
            return _number(self._floors[name.removesuffix(FLOOR)])
        return super().__getattr__(name)

    def _check_floor(self, name: str, value: Any) -> None:
        """Raises AttributeError if a program that loads each entry by name changes a floor."""
        floor = self._floors.get(name.removesuffix(FLOOR))
        given = float(value.detach() if isinstance(value, Tensor) else value)
        if given != floor:
            raise AttributeError(
                f"{name} is {floor} here and cannot be set to {given:g}; build the γ with "
                f"Learned(..., lower={given:g})"
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Also saves each γ that is a Python float, and the floor of a learned one, in float64."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._numbers:
            destination[prefix + name] = _number(getattr(self, name))
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
        numbers = self._numbers
        for name in (name + ending for name in self._spread_names for ending in _ENDINGS):
            saved = state_dict.get(prefix + name)
            here = self._parameters.get(name, self._buffers.get(name))
            single = name in numbers or (here is not None and not here.dim())
            if saved is not None and single and saved.numel() != 1:
                errors.append(  # torch would silently load the first of them
                    f"size mismatch for {prefix + name}: each of {saved.numel()} units has its own "
                    "γ in what was saved, and here one γ serves all"
                )
            elif saved is not None and name in numbers:
                setattr(self, name, float(saved))
        absent: list[str] = []
        surplus: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, absent, surplus, errors)
        of_spreads = prefix + self._spread_prefix
        missing.extend(key for key in absent if not key.startswith(of_spreads))
        unexpected.extend(key for key in surplus if not key.startswith(of_spreads))

    @property
    def _numbers(self) -> list[str]:
        """The names of the γ that are Python floats."""
        return [name for name in self._spread_names if isinstance(self.__dict__.get(name), float)]

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
    return {name + FLOOR: _number(floor)}


def move_to_floor(state_dict: Any, name: str, floor: float, errors: list[str]) -> None:
    """Changes the raw value of a learned γ in a state dict, so that γ stays what it was.

    Args:
        state_dict: the state dict, which is changed if it has another floor for γ.
        name: the name of γ in it.
        floor: the floor of γ in the module that loads it.
        errors: gets a sentence if γ is not above that floor.
    """
    key = f"{name}_unconstrained"
    raw, saved = state_dict.get(key), state_dict.get(name + FLOOR)
    if raw is None or saved is None or float(saved) == floor:
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


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")
