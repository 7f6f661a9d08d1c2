"""The interface of a spread γ, which is an attribute of the module whose noise it scales."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["FLOOR", "Spread", "device_of", "hold"]

FLOOR = "_floor"  # ends the name of the buffer with the floor of a learned γ


class Spread:
    """A kind of γ: a constant, a parameter, or a random variable."""

    per_unit: bool
    """True if each unit has its γ, with shape (H,); False if the layer has one, with shape ()."""

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        """Makes γ an attribute of a module.

        Args:
            module: the module.
            name: the name of the attribute, and of its parameter or sample site.
            units: H.
            like: a tensor with the dtype and device of γ.

        Raises:
            ValueError: if γ is not positive and finite, or does not have shape () or (H,).
        """
        raise NotImplementedError

    def read(self, module: PyroModule, name: str, like: Tensor) -> Tensor:
        """γ with the dtype and device of ``like``, in a shape that broadcasts with (\\*S, T, B, H).

        A prior drawn inside the plates of particles has shape (\\*S, 1, 1), to which this adds a
        last dimension, or (\\*S, 1, 1, H) if it is per unit.
        """
        value: Tensor = getattr(module, name).to(like)  # a prior has its distribution's dtype
        return value if value.dim() == 0 or self._is_per_unit(module) else value.unsqueeze(-1)

    def _is_per_unit(self, module: PyroModule) -> bool:
        return self.per_unit

    def reset(self, module: PyroModule, name: str) -> None:
        """Sets a learned γ, or one in a buffer, to its initial value in place."""

    def describe(self, module: PyroModule, name: str) -> str:
        """A short text about γ for the module's ``repr``."""
        value = getattr(module, name)
        return "meta" if value.is_meta else f"{value.mean():.4g}"  # on meta it has no value


def hold(module: PyroModule, name: str, value: Any) -> None:
    """Makes a value an attribute of a module, replacing any previous attribute of that name."""
    module._buffers.pop(name + FLOOR, None)
    with suppress(AttributeError):
        delattr(module, name)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        PyroModule.__setattr__(module, name, value)  # NoisyModule.__setattr__ would call attach


def device_of(like: Tensor) -> torch.device:
    return torch.device("cpu") if like.is_meta else like.device
