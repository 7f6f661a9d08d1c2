"""The random states of a process, which a checkpoint holds so that a resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_state", "set_random_state"]


def random_state(device: torch.device) -> list[Tensor]:
    """The random states of the CPU and, if it is another one, of the device."""
    states = [torch.get_rng_state()]
    return (
        states if device.type == "cpu" else [*states, getattr(torch, device.type).get_rng_state()]
    )


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Restores what :func:`random_state` returned, perhaps on a machine with another device."""
    torch.set_rng_state(states[0])
    if device.type != "cpu" and len(states) > 1:
        getattr(torch, device.type).set_rng_state(states[1])
