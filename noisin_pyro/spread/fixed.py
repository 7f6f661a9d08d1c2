"""A spread γ that is a constant, or a parameter of the user's."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro.spread.base import Spread, device_of, hold

__all__ = ["Fixed"]


class Fixed(Spread):
    """A constant γ, or an ``nn.Parameter`` that the user trains.

    A number or a tensor becomes a buffer of the module, and an ``nn.Parameter`` its parameter, with
    the dtype of its weights. In half precision a γ below 6e-8 counts as 0, which is no noise.

    Args:
        value: a number, or a floating-point tensor with shape () or (H,).

    Raises:
        ValueError: if γ is not positive and finite, is a tensor of another shape or dtype, or
            requires a gradient without being an ``nn.Parameter``.
    """

    value: float | Tensor

    def __init__(self, value: float | Tensor) -> None:
        if isinstance(value, Tensor) and (value.dim() > 1 or not value.is_floating_point()):
            raise ValueError(
                "a tensor of spreads must be floating-point with shape () or (hidden_size,), got "
                f"{value.dtype} with shape {tuple(value.shape)}"
            )
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if value.requires_grad:
                raise ValueError(
                    f"a spread that requires a gradient must be an nn.Parameter, got {_text(value)}"
                    ", whose gradient would be lost; give nn.Parameter(...), Learned(...) or "
                    ".detach() it"
                )
            value = value.clone()  # the caller's may change before `reset` reads it
        self.value = value
        self.per_unit = isinstance(value, Tensor) and value.dim() == 1
        self._check(torch.float64)

    def __repr__(self) -> str:
        return f"Fixed({_text(self.value)})"

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        if self.per_unit and len(self.value) != units:  # type: ignore[arg-type]
            raise ValueError(
                f"a spread per unit must have shape ({units},), one for each of the layer's units, "
                f"got {tuple(self.value.shape)}"  # type: ignore[union-attr]
            )
        self._check(like.dtype)
        if isinstance(self.value, nn.Parameter):
            hold(module, name, self.value)
        else:
            value = torch.as_tensor(self.value, dtype=like.dtype, device=device_of(like))
            hold(module, name, value.detach().clone())

    def _check(self, dtype: torch.dtype) -> None:
        """Raises ValueError unless γ is positive and finite after rounding to a dtype."""
        # The default device may be meta, whose tensors have no values.
        device = self.value.device if isinstance(self.value, Tensor) else "cpu"
        rounded = torch.as_tensor(self.value, dtype=dtype, device=device)
        if not bool((rounded.isfinite() & (rounded > 0)).all()):
            raise ValueError(
                f"spread must be positive and finite, got {_text(self.value)}; "
                "use noise=None for a deterministic RNN"
            )

    def reset(self, module: PyroModule, name: str) -> None:
        buffer = module._buffers.get(name)
        if buffer is not None:
            buffer.copy_(torch.as_tensor(self.value, dtype=buffer.dtype))


def _text(value: float | Tensor) -> str:
    return str(value.tolist()) if isinstance(value, Tensor) else str(value)
