"""Detects where torch transforms a computation for which a kernel of this package has no rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_forward_mode", "is_mapped", "needs_plain_torch"]


def is_forward_mode() -> bool:
    """Whether torch computes derivatives in forward mode, inside a ``forward_ad.dual_level()``."""
    return forward_ad._current_level >= 0


def is_mapped(*parts: Tensor | None) -> bool:
    """Whether ``torch.func.vmap`` maps over one of these tensors.

    False inside a ``torch.func.grad`` within the ``vmap``: there torch differentiates a kernel by
    its decomposition, which has vmap rules.
    """
    functorch = torch._C._functorch
    top: Any = functorch.peek_interpreter_stack()
    if top is None or top.key() != functorch.TransformType.Vmap:
        return False
    return any(part is not None and functorch.is_batchedtensor(part) for part in parts)


def needs_plain_torch(*parts: Tensor | None) -> bool:
    """Whether torch must see the single operations of a forward or backward pass.

    That is under ``torch.func``, in forward mode (``torch.autograd.forward_ad``), under
    ``torch.jit.trace``, and where torch maps a backward pass over many gradients of the output.
    ``torch.autograd.grad(is_grads_batched=True)``, and with it
    ``torch.autograd.functional.jacobian(vectorize=True)``, does so by an older vmap than
    ``torch.func``. Under neither can a pass write into a new buffer, which is not mapped.

    Args:
        parts: the tensors that the older vmap may map: in a backward pass its arguments.
    """
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or is_forward_mode()
        or any(part is not None and legacy(part) for part in parts)
    )
