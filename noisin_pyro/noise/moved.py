"""The tensors of a distribution, at any depth, and its copy with another dtype and device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

__all__ = ["moved", "tensors", "widest"]


def _copied(node: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """A copy of a distribution in which every tensor is changed; it does not validate arguments.

    Args:
        node: a distribution, or a part of one at any depth.
        change: the function of each tensor.
        done: the copies of the parts so far by ``id``, because a transform and its inverse refer to
            each other.
    """
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, Tensor):
        done[id(node)] = change(node)
    elif isinstance(node, (Distribution, Transform, nn.Module)):
        done[id(node)] = new = copy.copy(node)
        for name, value in vars(node).items():
            new.__dict__[name] = _copied(value, change, done)
        if isinstance(new, Distribution):
            new._validate_args = False
    elif isinstance(node, dict):
        return {key: _copied(value, change, done) for key, value in node.items()}
    elif isinstance(node, (list, tuple)) and not isinstance(node, torch.Size):
        return type(node)(_copied(value, change, done) for value in node)
    else:
        return node
    return done[id(node)]


def moved(base: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A copy of a distribution whose tensors have the given dtype and device.

    torch has no ``Distribution.to``, and ``copy.deepcopy`` breaks inverse transforms.

    Args:
        base: any distribution. The distributions inside it (the Dirichlet of a Beta, the components
            of a mixture, the base of a transformed one) are copied too.
        dtype: the dtype of its floating-point tensors; other tensors keep theirs.
        device: the device of all its tensors.

    Example:
        >>> import torch
        >>> gumbel = torch.distributions.Gumbel(0.0, 1.0)
        >>> moved(gumbel, torch.float64, torch.device("cpu")).sample().dtype
        torch.float64
    """

    def change(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return _copied(base, change, {})


def tensors(base: Distribution) -> list[Tensor]:
    """All tensors in a distribution, at any depth.

    Example:
        >>> import torch
        >>> tensors(torch.distributions.Exponential(2.0))
        [tensor(2.)]
    """
    collected: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        collected.append(tensor)
        return tensor

    _copied(base, collect, {})
    return collected


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, or float32 on Apple's GPUs.

    Example:
        >>> widest(torch.device("cpu")), widest(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64
