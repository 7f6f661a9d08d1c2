"""Whether torch maps a function over one more dimension, for which kernels here have no rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["backward_is_mapped", "is_mapped"]


def is_mapped(*parts: Tensor | None) -> bool:
    """Whether ``torch.func.vmap`` maps over one of these tensors.

    Not where a gradient is taken inside of it, since torch computes that from the kernels' parts.
    """
    functorch = torch._C._functorch
    top: Any = functorch.peek_interpreter_stack()
    if top is None or top.key() != functorch.TransformType.Vmap:
        return False
    return any(part is not None and functorch.is_batchedtensor(part) for part in parts)


def backward_is_mapped(*grads: Tensor | None) -> bool:
    """Whether a backward pass is for many gradients of the output at once.

    ``torch.autograd.grad(is_grads_batched=True)``, and with it
    ``torch.autograd.functional.jacobian(vectorize=True)``, maps the backward pass by an older vmap
    than ``torch.func``. Neither can write into a buffer that it does not map over.

    Args:
        grads: the gradients that the backward pass is given.
    """
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return torch._C._are_functorch_transforms_active() or any(
        grad is not None and legacy(grad) for grad in grads
    )
