"""log softmax(V z + b)[y] with one matrix of logits in memory, and its backward pass by hand.

torch's chain ``linear -> log_softmax -> nll_loss`` holds three such matrices in turn: the
log-probabilities, their gradient (zero but for one number a row) and the logits' gradient. At
10,000 words each is 28 MB for a window of 35 x 20 words, new in every step, and on a CPU the
memory's first touch costs more than what is computed in it. Here softmax(V z + b) − onehot(y)
takes the place of the logits, and with g = ∂L/∂log p both products follow from it:

    ∂L/∂z = −g (softmax − onehot) V        ∂L/∂V = −(softmax − onehot)ᵀ (g z)

Over a long window even one such matrix is too large: 4.4 GB for 4,096 x 8 rows of 33,278 words.
Beyond a size the rows are taken in parts, and no part's logits outlive it. If they were computed
again in the backward pass, a training step would have four products instead of three. So the
forward pass computes both gradients for g = −1 while a part is there, and the backward pass scales
them. That is all where every row has the same g, as in a sum or a mean over the rows. Where g
differs, as under a mask, the backward pass computes the logits again, part by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.mapped import backward_is_mapped
from noisin_pyro.kernels.onednn import linear, outer

__all__ = ["linear_log_softmax"]

_LARGE = 1 << 27  # logits, 512 MB, above which no matrix of them all is made
_PART = 1 << 23  # logits of a part
_CACHED = 1 << 19  # numbers that a CPU's cache holds between two passes over them

_NO_CLASS = torch.iinfo(torch.int64).min  # cross_entropy's own default takes a target for padding


def linear_log_softmax(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The log-probability of each row's target.

    Args:
        z: with shape (N, H).
        weight: V, with shape (K, H).
        bias: b, with shape (K,).
        target: y, of dtype int64 with shape (N,).

    Returns:
        With shape (N,), in float32 under autocast.

    Example:
        >>> linear_log_softmax(torch.zeros(2, 3), torch.zeros(4, 3), None, torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """
    if torch._C._are_functorch_transforms_active():
        return _plain(z, weight, bias, target)
    parts = (z, weight, bias)
    if not torch.is_grad_enabled() or not any(p is not None and p.requires_grad for p in parts):
        size = len(z) if len(z) * len(weight) <= _LARGE else _PART // len(weight)
        return torch.cat(
            [
                _to_softmax(linear(z[rows], weight, bias), target[rows])
                for rows in _rows(len(z), size)
            ]
        )
    device = z.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        z, weight = z.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        if len(z) * len(weight) > _LARGE:
            return _InParts.apply(z, weight, bias, target)  # type: ignore[no-any-return, no-untyped-call]
        found = _LinearLogSoftmax.apply(z, weight, bias, target)  # type: ignore[no-untyped-call]
    return found[0]  # type: ignore[no-any-return]


def _plain(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The readable form."""
    logits = F.linear(z, weight, bias)
    return -F.cross_entropy(logits, target, reduction="none", ignore_index=_NO_CLASS)


def _rows(count: int, size: int) -> Iterator[slice]:
    """All rows, in parts of ``size``."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, max(count, 1), size))


def _to_softmax(logits: Tensor, target: Tensor, excess: bool = False) -> Tensor:
    """log p_y of each row; the logits become softmax(logits), less onehot(y) if ``excess``.

    Rows that fit a CPU's cache are taken together, halves in single precision meanwhile. With
    p_max = 1/Σ exp(logits − max), one exponential a number gives both.
    """
    single = torch.promote_types(logits.dtype, torch.float32)
    log_prob = logits.new_empty(len(logits), dtype=single)
    size = _CACHED // logits.shape[1] if logits.device.type == "cpu" else len(logits)
    for rows in _rows(len(logits), size):
        part, column = logits[rows].to(single), target[rows].unsqueeze(1)
        at_target, largest = part.gather(1, column), part.amax(1, keepdim=True)
        torch.softmax(part, 1, out=part)
        normaliser = largest - part.amax(1, keepdim=True).log_()
        log_prob[rows] = (at_target - normaliser).squeeze(1)
        if excess:
            part.scatter_add_(1, column, part.new_tensor(-1.0).expand(column.shape))
        if single != logits.dtype:
            logits[rows] = part
    return log_prob


def _log_prob_and_excess(
    z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """log softmax(V z + b)[y] with shape (N,), and softmax(V z + b) − onehot(y)."""
    logits = linear(z, weight, bias)
    return _to_softmax(logits, target, excess=True), logits


class _LinearLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _log_prob_and_excess(z, weight, bias, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, excess = output
        ctx.mark_non_differentiable(excess)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, excess)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        z, weight, bias, target, excess = ctx.saved_tensors
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled() or backward_is_mapped(grad):
            return *_differentiable_gradients(grad, z, weight, bias, target), None
        negative = -grad.to(excess.dtype).unsqueeze(1)
        wanted = ctx.needs_input_grad
        return (
            linear(excess, weight.t()).mul_(negative) if wanted[0] else None,
            outer(excess, z * negative) if wanted[1] else None,
            (excess.t() @ negative).squeeze(1) if bias is not None and wanted[2] else None,
            None,
        )


class _InParts(torch.autograd.Function):
    """As :class:`_LinearLogSoftmax`, without a matrix of all logits."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        log_prob, *gradients = _in_parts(z, weight, bias, target, None, ctx.needs_input_grad)
        ctx.save_for_backward(z, weight, bias, target, *gradients)
        assert log_prob is not None
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, weight, bias, target, *gradients = ctx.saved_tensors
        if torch.is_grad_enabled() or backward_is_mapped(grad):
            return *_differentiable_gradients(grad, z, weight, bias, target), None
        first = -grad[:1]
        if bool((grad == -first).all()):
            scaled = [None if part is None else part * first.to(part.dtype) for part in gradients]
            return *scaled, None
        _, *gradients = _in_parts(z, weight, bias, target, grad, ctx.needs_input_grad)
        return *gradients, None


def _in_parts(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    grad: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The log-probabilities, and the gradients by z, V and b for g = ``grad``, or −1 if None."""
    single = torch.promote_types(weight.dtype, torch.float32)  # for sums over many parts
    dz = torch.empty_like(z) if wanted[0] else None
    dw = weight.new_zeros(weight.t().shape, dtype=single) if wanted[1] else None
    db = weight.new_zeros(len(weight), dtype=single) if wanted[2] and bias is not None else None
    log_prob = z.new_empty(len(z), dtype=single)
    for rows in _rows(len(z), _PART // len(weight)):
        log_prob[rows], excess = _log_prob_and_excess(z[rows], weight, bias, target[rows])
        if grad is not None:
            excess.mul_(-grad[rows].to(excess.dtype).unsqueeze(1))
        if dz is not None:
            dz[rows] = linear(excess, weight.t())
        if dw is not None:
            dw += linear(z[rows].t(), excess.t())  # its transpose, which costs oneDNN half the time
        if db is not None:
            db += excess.sum(0)
    return (
        log_prob,
        dz,
        None if dw is None else dw.t().to(weight.dtype, memory_format=torch.contiguous_format),
        None if db is None else db.to(weight.dtype),
    )


def _differentiable_gradients(
    grad: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> list[Tensor | None]:
    """Those of :func:`_plain`, with derivatives if these are wanted; for a mapped ``grad`` too."""
    differentiated = torch.is_grad_enabled()
    parts = [z, weight, bias]
    wanted = [part for part in parts if part is not None and part.requires_grad]
    with torch.enable_grad():
        log_prob = _plain(z, weight, bias, target)
        found = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=differentiated))
    return [next(found) if part is not None and part.requires_grad else None for part in parts]
