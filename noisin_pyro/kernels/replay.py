"""The gradients of a kernel by autograd, where its backward pass by hand has no rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["replayed_gradients"]


def replayed_gradients(
    plain: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of a kernel's inputs, from its form in plain torch.

    It takes gradients that torch maps (:func:`.needs_plain_torch`). If gradients are enabled, its
    results can be differentiated again.

    Args:
        plain: the kernel in plain torch, from the inputs to its outputs.
        inputs: the kernel's inputs.
        wanted: whether to compute the gradient by each input.
        grads: the gradients by the outputs, at least one of them a tensor.

    Returns:
        The gradient by each input, None if it is not wanted.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> z = 2 * w
        >>> with torch.no_grad():  # d(z · w) at fixed w, and at fixed z
        ...     replayed_gradients(lambda z, w: [z * w], [z, w], [True, True], [torch.ones(())])
        [tensor(3.), tensor(6.)]
    """
    again = torch.is_grad_enabled()
    device = next(part.device.type for part in inputs if part is not None)
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        # One input may be computed from another, such as a carried state from the weights. A view
        # is not, so the gradient by the weights excludes that path, which autograd adds itself.
        views = [None if part is None else part.view_as(part) for part in inputs]
        pairs = [(out, grad) for out, grad in zip(plain(*views), grads) if grad is not None]
        leaves = [view for view, needs in zip(views, wanted) if view is not None and needs]
        outputs, given = zip(*pairs)
        gradients = iter(
            torch.autograd.grad(outputs, leaves, given, create_graph=again, allow_unused=True)
        )
    return [next(gradients) if needs else None for needs in wanted]
