"""Weight drop (Merity et al. 2017): dropout of single recurrent weights, one mask per sequence.

https://arxiv.org/abs/1708.02182, section 2; the mask is DropConnect's (Wan et al. 2013).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["WeightDrop", "weight_drop"]

Module = TypeVar("Module", bound=nn.Module)


def weight_drop(module: Module, names: str | Sequence[str] = "weight_hh", p: float = 0.5) -> Module:
    """Drops entries of a module's weights while it trains, with one mask for each of its calls.

    A call runs over a whole sequence, so all its steps read the same masked weights, which are
    scaled by 1/(1 − p). In ``eval()`` the weights are as they are. Gradients reach the raw weight,
    ``module.parametrizations.weight_hh_l0.original``, which is what ``parameters()`` and the state
    dict hold. ``torch.nn.utils.parametrize.remove_parametrizations(module, name,
    leave_parametrized=False)`` is the way back. A weight that has another parametrization, such as
    ``torch.nn.utils.parametrizations.weight_norm``, is dropped from after it.

    Activation checkpointing of a part of ``module`` reads the mask of its last call, so each call
    must be differentiated before the next; around the whole of ``module`` there is no such rule.

    Args:
        module: any module: ``torch.nn.LSTM``, a noisy RNN, or one that holds such. A new mask is
            drawn whenever it is called.
        names: of the parameters to drop from. One string is what their own names begin with, in
            the module and in its parts; of several, each is a whole name, as ``"weight_hh_l0"`` or
            ``"rnn.weight_hh_l0"``.
        p: the probability of dropping an entry.

    Returns:
        The module itself.

    Raises:
        ValueError: if no parameter has such a name, or ``p`` lies outside [0, 1).

    Example:
        >>> lstm = weight_drop(torch.nn.LSTM(3, 5, num_layers=2), p=0.5)
        >>> [name for name, _ in lstm.named_parameters() if "original" in name]
        ['parametrizations.weight_hh_l0.original', 'parametrizations.weight_hh_l1.original']
        >>> output, _ = lstm(torch.randn(7, 2, 3))
        >>> bool((lstm.weight_hh_l0 == 0).any()), bool((lstm.eval().weight_hh_l0 == 0).any())
        (True, False)
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must lie in [0, 1), got {p}")
    known = _droppable(module)
    if isinstance(names, str):
        chosen = [name for name in known if name.rpartition(".")[2].startswith(names)]
        missing = [] if chosen else [f"{names}..."]
    else:
        chosen = list(names)
        missing = [name for name in names if name not in known]
    if missing or not chosen:
        raise ValueError(
            f"{type(module).__name__} has no parameter {', '.join(missing) or names!r}; the known "
            f"ones are {', '.join(known)}"
        )
    for name in chosen:
        owner, _, own = name.rpartition(".")
        part = module.get_submodule(owner)
        drop = WeightDrop(p).train(part.training)
        parametrize.register_parametrization(part, own, drop, unsafe=True)  # it keeps the shape
    module.register_forward_pre_hook(_renew_masks)
    module.register_forward_hook(_forget_masked_weights, always_call=True)
    return module


class WeightDrop(nn.Module):
    """The parametrization of a dropped weight: the weight times the mask of the last call.

    Args:
        p: the probability of dropping an entry.
    """

    mask: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask = None
        self.due = False  # whether to draw a mask when next read

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as a layer reads it, with the shape of ``weight``."""
        if not self.training or not self.p:
            return weight
        if self.due:
            self.mask, self.due = F.dropout(torch.ones_like(weight), self.p), False
        return weight if self.mask is None else weight * self.mask.to(weight)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "mask": None}  # a copy has masks of its own

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight for a weight that is assigned."""
        return weight

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _parametrized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Of each parametrized tensor: its part's path and module, its own name, and what it passes."""
    for path, part in module.named_modules():
        if parametrize.is_parametrized(part):
            lists: Any = part.parametrizations
            for own, steps in lists.items():
                yield path, part, own, steps


def _droppable(module: nn.Module) -> list[str]:
    """The names of all parameters, and of tensors with a parametrization that drops nothing."""
    names = [name for name, _ in module.named_parameters()]
    for path, _, own, steps in _parametrized(module):
        if not any(isinstance(step, WeightDrop) for step in steps):
            names.append(f"{path}.{own}" if path else own)
    return names


def _renew_masks(module: nn.Module, inputs: Any) -> None:
    """Draws all masks before any part runs, for a part that is run again must draw none."""
    for _, part, own, steps in _parametrized(module):
        drops = [step for step in steps if isinstance(step, WeightDrop)]
        for drop in drops:
            drop.due = True
        if any(drop.training for drop in drops):
            getattr(part, own)


def _forget_masked_weights(module: nn.Module, inputs: Any, output: Any) -> None:
    """Empties the list of weights that torch's RNNs keep from call to call and then read anew.

    A masked weight is no leaf of autograd's graph, and a module that holds one cannot be copied.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            kept: list[Tensor | None] = part._flat_weights
            if not all(weight is None or weight.is_leaf for weight in kept):
                part._flat_weights = []
