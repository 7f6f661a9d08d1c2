"""Weight drop (Merity et al. 2017): dropout of single recurrent weights, one mask per sequence.

https://arxiv.org/abs/1708.02182, section 2. It is DropConnect (Wan et al. 2013,
https://proceedings.mlr.press/v28/wan13.html) on the recurrent weights.
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
    """Sets random entries of weights to 0 in training, with a new mask in each call of a module.

    All steps of a sequence use the same mask. The remaining entries are scaled by 1/(1 − p). In
    ``eval()`` nothing is dropped. The trained parameter, in ``parameters()`` and the state dict, is
    the full weight ``module.parametrizations.weight_hh_l0.original``. Weight drop is removed by
    ``torch.nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=False)``.
    It comes after other parametrizations of a weight, such as
    ``torch.nn.utils.parametrizations.weight_norm``.

    The masks belong to the module, so train it in one thread at a time. Several threads may call it
    in ``eval()``.

    Under activation checkpointing of a part of ``module``, run the backward pass of each call
    before the next call, because the recomputation uses the last mask. Checkpointing the whole
    ``module`` has no such restriction.

    Args:
        module: any module: ``torch.nn.LSTM``, a noisy RNN, or a module that contains one. Each call
            of it draws new masks. Its other methods, such as ``model.encode``, and calls of a part
            alone use the masks of its last call, and before the first call drop nothing; so give
            the module that your program calls.
        names: the parameters. A string is a prefix of parameter names, in the module and all its
            submodules. A sequence contains full names such as ``"weight_hh_l0"`` or
            ``"rnn.weight_hh_l0"``.
        p: the probability of dropping an entry.

    Returns:
        The module itself.

    Raises:
        TypeError: if ``names`` is a number, as the rate given by position is.
        ValueError: if a name fits no parameter, or ``p`` lies outside [0, 1).

    Example:
        >>> lstm = weight_drop(torch.nn.LSTM(3, 5, num_layers=2), p=0.5)
        >>> [name for name, _ in lstm.named_parameters() if "original" in name]
        ['parametrizations.weight_hh_l0.original', 'parametrizations.weight_hh_l1.original']
        >>> output, _ = lstm(torch.randn(7, 2, 3))
        >>> bool((lstm.weight_hh_l0 == 0).any()), bool((lstm.eval().weight_hh_l0 == 0).any())
        (True, False)
    """
    if isinstance(names, (int, float)):
        raise TypeError(f"names must be a string or a list of names, got {names}; give p={names}")
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
        path, _, weight = name.rpartition(".")
        part = module.get_submodule(path)
        drop = WeightDrop(p).train(part.training)
        # unsafe=True skips torch's check of the shape, which WeightDrop does not change.
        parametrize.register_parametrization(part, weight, drop, unsafe=True)
    module.register_forward_pre_hook(_renew_masks)
    module.register_forward_hook(_forget_masked_weights, always_call=True)
    return module


class WeightDrop(nn.Module):
    """The parametrization of :func:`weight_drop`: the weight times the mask of the current call.

    Args:
        p: the probability of dropping an entry.
    """

    mask: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask = None
        self.due = False  # whether the next forward draws a new mask

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, with the shape of ``weight``."""
        if not self.training or not self.p:
            return weight
        if self.due:
            self.mask, self.due = F.dropout(torch.ones_like(weight), self.p), False
        return weight if self.mask is None else weight * self.mask.to(weight)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "mask": None}  # a copy draws its own masks

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The full weight for an assigned weight: the same."""
        return weight

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _parametrized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Path, submodule, name and parametrizations of each parametrized tensor."""
    for path, part in module.named_modules():
        if parametrize.is_parametrized(part):
            lists: Any = part.parametrizations
            for name, steps in lists.items():
                yield path, part, name, steps


def _droppable(module: nn.Module) -> list[str]:
    """The names of all parameters, and of tensors with other parametrizations than weight drop."""
    names = [name for name, _ in module.named_parameters()]
    for path, _, name, steps in _parametrized(module):
        if not any(isinstance(step, WeightDrop) for step in steps):
            names.append(f"{path}.{name}" if path else name)
    return names


def _renew_masks(module: nn.Module, inputs: Any) -> None:
    """Draws all masks before any submodule runs, so that its recomputation uses the same mask."""
    for _, part, name, steps in _parametrized(module):
        drops = [step for step in steps if isinstance(step, WeightDrop)]
        for drop in drops:
            drop.due = True
        if any(drop.training for drop in drops):
            getattr(part, name)


def _forget_masked_weights(module: nn.Module, inputs: Any, output: Any) -> None:
    """Empties the weight lists of torch's RNNs, which they fill in their next call.

    They contain masked weights, which are no leaves of the graph, and a module with such a tensor
    cannot be deep-copied.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            kept: list[Tensor | None] = part._flat_weights
            if not all(weight is None or weight.is_leaf for weight in kept):
                part._flat_weights = []
