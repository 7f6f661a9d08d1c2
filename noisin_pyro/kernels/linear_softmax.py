"""log softmax(V z + b)[y] with one matrix of logits in memory and a hand-written backward pass.

torch's ``linear -> log_softmax -> nll_loss`` allocates three matrices of that size in turn: the
log-probabilities, their gradient (one nonzero number in each row) and the gradient of the logits.
With 10,000 words and a window of 35 x 20 each has 28 MB. They are new in every training step, and
on a CPU the page faults of new memory cost more than the arithmetic. Here softmax(V z + b) −
onehot(y) overwrites the logits, and with g = ∂L/∂log p it gives both gradients:

    ∂L/∂z = −g (softmax − onehot) V        ∂L/∂V = −(softmax − onehot)ᵀ (g z)

Over a long window even one matrix is too large: 4.4 GB for 4,096 x 8 rows and 33,278 words. Above
``_LARGE`` logits the rows are split into parts whose logits are discarded. Recomputing them in the
backward pass would cost a fourth matrix product in a training step that has three. So the forward
pass computes both gradients of each part for g = −1, and the backward pass scales them. This is
exact if all rows have the same g, as in a sum or mean over rows. If they differ, as under a mask,
the backward pass recomputes the logits part by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.mapped import needs_plain_torch
from noisin_pyro.kernels.onednn import linear, outer
from noisin_pyro.kernels.replay import replayed_gradients

__all__ = ["linear_log_softmax"]

_LARGE = 1 << 27  # logits (512 MB in float32); above this number the rows are split into parts
_PART = 1 << 23  # logits of a part
_UNTRAINED = 4_000_000  # those without a backward pass: 16 MB are reused without page faults
_CACHED = 1 << 18  # logits that stay in a CPU's cache between two passes over them

_NO_CLASS = torch.iinfo(torch.int64).min  # an ignore_index that no target has


def linear_log_softmax(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The log-probability log softmax(V z + b)[y] of each row's target, without validation.

    Args:
        z: the features, with shape (N, H).
        weight: V, with shape (K, H).
        bias: b, with shape (K,), or None for 0.
        target: y, classes in 0 … K − 1 of dtype int64, with shape (N,).

    Returns:
        The log-probabilities, with shape (N,), in float32 if the inputs or autocast have half
        precision.

    Example:
        >>> linear_log_softmax(torch.zeros(2, 3), torch.zeros(4, 3), None, torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """
    if needs_plain_torch():
        return _plain(z, weight, bias, target)
    parts = (z, weight, bias)
    if not torch.is_grad_enabled() or not any(p is not None and p.requires_grad for p in parts):
        size = _UNTRAINED // len(weight)
        return torch.cat(
            [
                _log_prob_and_softmax(z[rows], weight, bias, target[rows])[0]
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
        log_prob, _ = _LinearLogSoftmax.apply(z, weight, bias, target)  # type: ignore[no-untyped-call]
    return log_prob  # type: ignore[no-any-return]


def _plain(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """:func:`linear_log_softmax` in torch's own functions."""
    logits = F.linear(z, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits, target, reduction="none", ignore_index=_NO_CLASS)


def _rows(count: int, size: int) -> Iterator[slice]:
    """Slices of ``size`` rows that cover all rows; one empty slice if there are none."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, max(count, 1), size))


def _log_prob_and_softmax(
    z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, excess: bool = False
) -> tuple[Tensor, Tensor]:
    """The log-probability of each row's target, and the softmax of its logits.

    On a CPU the bias is added to rows in the cache: torch's product copies it into new memory
    first, which takes as long as the product in half precision.

    Args:
        z, weight, bias, target: those of :func:`linear_log_softmax`.
        excess: whether to subtract onehot(y) from the softmax.

    Returns:
        The log-probabilities, in float32 or float64, with shape (N,), and the softmax in the dtype
        of the product, with shape (N, K).
    """
    if z.device.type == "cpu":
        logits = linear(z, weight)
        return _to_softmax(logits, target, excess, bias), logits
    logits = linear(z, weight, bias)
    return _to_softmax(logits, target, excess), logits


def _to_softmax(
    logits: Tensor, target: Tensor, excess: bool = False, bias: Tensor | None = None
) -> Tensor:
    """The log-probability of each row's target; the logits are overwritten.

    Since max softmax = 1/Σ exp(logits − max), the softmax gives the normaliser too, and each logit
    needs one exponential. Half precision is computed in float32.

    Args:
        logits: with shape (N, K). They become softmax(logits + b), or softmax(logits + b) −
            onehot(y) if ``excess``.
        target: y, with shape (N,).
        excess: whether to subtract onehot(y).
        bias: b, with shape (K,), or None for 0.

    Returns:
        The log-probabilities, in float32 or float64, with shape (N,).
    """
    single = torch.promote_types(logits.dtype, torch.float32)
    bias = None if bias is None else bias.to(single)
    log_prob = logits.new_empty(len(logits), dtype=single)
    size = _CACHED // logits.shape[1] if logits.device.type == "cpu" else len(logits)
    for rows in _rows(len(logits), size):
        part, column = logits[rows].to(single), target[rows].unsqueeze(1)
        if bias is not None:
            part += bias
        at_target, largest = part.gather(1, column), part.amax(1, keepdim=True)
        torch.softmax(part, 1, out=part)
        normaliser = largest - part.amax(1, keepdim=True).log_()
        log_prob[rows] = (at_target - normaliser).squeeze(1)
        if excess:
            part.scatter_add_(1, column, part.new_tensor(-1.0).expand(column.shape))
        if single != logits.dtype:
            logits[rows] = part
    return log_prob


class _LinearLogSoftmax(torch.autograd.Function):
    """The log-probabilities, then softmax − onehot, which is saved for the backward pass."""

    @staticmethod
    def forward(
        z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _log_prob_and_softmax(z, weight, bias, target, excess=True)

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
        if torch.is_grad_enabled() or needs_plain_torch(grad):
            return _replayed((z, weight, bias, target), ctx.needs_input_grad, grad)
        negative = -grad.to(excess.dtype).unsqueeze(1)
        wanted = ctx.needs_input_grad
        return (
            linear(excess, weight.t()).mul_(negative) if wanted[0] else None,
            outer(excess, z * negative) if wanted[1] else None,
            (excess.t() @ negative).squeeze(1) if bias is not None and wanted[2] else None,
            None,
        )


class _InParts(torch.autograd.Function):
    """The log-probabilities, computed in parts of the rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        log_prob, *gradients = _in_parts(z, weight, bias, target, None, ctx.needs_input_grad)
        ctx.save_for_backward(z, weight, bias, target, *gradients)
        assert log_prob is not None
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, weight, bias, target, *gradients = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain_torch(grad):
            return _replayed((z, weight, bias, target), ctx.needs_input_grad, grad)
        first = -grad[:1]
        if bool((grad == -first).all()):
            gradients = [
                None if part is None else part * first.to(part.dtype) for part in gradients
            ]
        else:
            _, *gradients = _in_parts(z, weight, bias, target, grad, ctx.needs_input_grad)
        pairs = zip(gradients, (z, weight, bias))
        return *(None if g is None or like is None else g.to(like.dtype) for g, like in pairs), None


def _in_parts(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    grad: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The log-probabilities and the gradients by z, V and b, in parts of the rows.

    Args:
        z, weight, bias, target: those of :func:`linear_log_softmax`.
        grad: g, with shape (N,), or None for −1.
        wanted: whether to compute the gradients by z, V and b.

    Returns:
        The log-probabilities with shape (N,), and each gradient or None; those by V and b in single
        precision at least, because sums over all rows may be too large for half precision before
        they are multiplied by g.
    """
    single = torch.promote_types(weight.dtype, torch.float32)
    dz = torch.empty_like(z) if wanted[0] else None
    dw = weight.new_zeros(weight.t().shape, dtype=single) if wanted[1] else None
    db = weight.new_zeros(len(weight), dtype=single) if wanted[2] and bias is not None else None
    log_prob = z.new_empty(len(z), dtype=single)
    for rows in _rows(len(z), _PART // len(weight)):
        log_prob[rows], excess = _log_prob_and_softmax(
            z[rows], weight, bias, target[rows], excess=True
        )
        if grad is not None:
            excess.mul_(-grad[rows].to(excess.dtype).unsqueeze(1))
        if dz is not None:
            dz[rows] = linear(excess, weight.t())
        if dw is not None:
            dw += linear(z[rows].t(), excess.t())  # its transpose, which costs oneDNN half the time
        if db is not None:
            db += excess.sum(0, dtype=single)
    return (
        log_prob,
        dz,
        None if dw is None else dw.t().contiguous(),
        db,
    )


def _replayed(inputs: Sequence[Tensor | None], wanted: Sequence[bool], grad: Tensor) -> Any:
    """The gradients by autograd, which takes a mapped ``grad`` and gives further derivatives."""
    return tuple(replayed_gradients(lambda *parts: (_plain(*parts),), inputs, wanted, (grad,)))
