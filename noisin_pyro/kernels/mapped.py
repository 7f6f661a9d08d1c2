"""Detects torch's vmaps, for which the kernels of this package have no rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["backward_is_mapped", "is_mapped"]


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


def backward_is_mapped(*grads: Tensor | None) -> bool:
    """Whether torch maps a backward pass over many gradients of the output.

    ``torch.autograd.grad(is_grads_batched=True)``, and with it
    ``torch.autograd.functional.jacobian(vectorize=True)``, does so by an older vmap than
    ``torch.func``. Under neither can a backward pass write into a new buffer, which is not mapped.

    Args:
        grads: the arguments of the backward pass.
    """
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return torch._C._are_functorch_transforms_active() or any(
        grad is not None and legacy(grad) for grad in grads
    )
