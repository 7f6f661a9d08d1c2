"""Matrix products on a CPU by oneDNN, a library that is part of torch.

torch computes float32 products by MKL, which Intel makes. On other processors MKL is slower than it
need be: oneDNN takes longer to begin there (40 µs on an AMD EPYC), and computes large products
faster, from about 10⁷ multiplications with AVX-512, which MKL does not use there, and from about
10⁸ without it. On Intel's processors MKL is faster (``benchmarks/products.py``). A recurrence
multiplies few rows by the same matrix in every step. oneDNN can reorder that matrix in advance,
which pays from 3·10⁶ multiplications with AVX-512, 3·10⁷ without it, and on Intel's from 10⁷.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.mapped import needs_plain_torch
from noisin_pyro.kernels.processor import INTEL

__all__ = ["linear", "outer", "packs", "small_products"]

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(addend, x, out) -> out = addend + x Wᵀ."""

_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_FEWEST = 4  # least number of products for which reordering the matrix pays
_ROWS = 256  # least number of rows in :func:`outer`, whose result oneDNN computes transposed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by the faster of the two libraries, with derivatives of any order.

    Args:
        x: the input, with shape (\\*, H).
        weight: W, with shape (G, H).
        bias: b, with shape (G,), or None for 0.

    Returns:
        x Wᵀ + b, with shape (\\*, G).

    Example:
        >>> import torch
        >>> linear(torch.ones(3, 2), torch.eye(2))
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_n right_nᵀ, the gradient of a weight, by the faster of the two libraries.

    Args:
        left: with shape (N, G).
        right: with shape (N, H).

    Returns:
        The sum, with shape (G, H).
    """
    few = len(left) < _ROWS or not _pays(len(left) * left.shape[1] * right.shape[1], outer=True)
    if few or not _by_onednn(right.t(), left.t()):
        return left.t() @ right
    return linear(right.t(), left.t()).t().contiguous()  # its transpose costs oneDNN half the time


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dim() > 1
        and _pays(x.numel() * len(weight))
        and packs(weight)
        and packs(x)
        and (weight.is_contiguous() or weight.t().is_contiguous())  # others are 1,000 times slower
        and not torch.is_autocast_enabled("cpu")
        and not needs_plain_torch(x, weight)
    )


class _Linear(torch.autograd.Function):
    """:func:`linear` by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        bias = None if bias is None else bias.contiguous()  # oneDNN ignores strides
        library: Any = torch.ops.mkldnn
        return library._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows, grads = x.flatten(0, -2), grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if to_x else None,
            outer(grads, rows) if to_weight else None,
            grads.sum(0) if to_bias else None,
        )


def small_products(weight: Tensor, rows: int, count: int) -> Product:
    """A function (addend, x, out) that writes addend + x Wᵀ into out, without autograd.

    Args:
        weight: W, with shape (G, H).
        rows: B, the number of rows of each x.
        count: the expected number of calls.

    Example:
        >>> import torch
        >>> product = small_products(torch.eye(2), rows=1, count=35)
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.empty(1, 2))
        tensor([[2., 3.]])
    """
    if count >= _FEWEST and _pays(rows * weight.numel(), reordered=True) and packs(weight):
        library: Any = torch.ops.mkldnn
        packed = library._reorder_linear_weight(weight.detach().contiguous(), rows)

        def by_onednn(addend: Tensor, x: Tensor, out: Tensor) -> Tensor:
            return torch.add(
                addend, library._linear_pointwise(x, packed, None, "none", [], ""), out=out
            )

        return by_onednn
    transposed = weight.t()
    return lambda addend, x, out: torch.addmm(addend, x, transposed, out=out)


def packs(weight: Tensor) -> bool:
    """Whether oneDNN can multiply by this matrix: float32, on a CPU, and a torch with oneDNN.

    The operations used here belong to torch's compiler and are not public. So they are tried once;
    if they fail, all products run by ``addmm``.
    """
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return plain and weight.dtype == torch.float32 and weight.device.type == "cpu" and _works()


def _pays(multiplications: int, reordered: bool = False, outer: bool = False) -> bool:
    """Whether oneDNN is the faster of the two for a product."""
    return multiplications >= _least(reordered, outer)


def _least(reordered: bool, outer: bool = False) -> float:
    """Number of multiplications from which oneDNN pays; measured on Intel Xeons and AMD EPYCs."""
    if INTEL:
        return 1e7 if reordered else math.inf
    if outer or not _AVX512:
        return 3e7 if reordered else 1e8
    return 3e6 if reordered else 1e7


@cache
def _works() -> bool:
    """Whether this torch has the two operations, with the expected arguments."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        library: Any = torch.ops.mkldnn
        on_cpu: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
        packed = library._reorder_linear_weight(torch.eye(2, **on_cpu), 1)
        done = library._linear_pointwise(torch.ones(1, 2, **on_cpu), packed, None, "none", [], "")
    except Exception:  # another torch may lack them or want other arguments
        return False
    return bool((done == 1).all())
