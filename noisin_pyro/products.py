"""Many small products with one matrix, one after another, as a recurrence needs them.

A batch of 20 rows is too thin for torch's general matrix product on a CPU, which arranges the
matrix anew at each call. oneDNN, which torch carries and runs its own LSTM with, takes a matrix
arranged beforehand, which is several times faster where the general product is slow (it was on an
AMD EPYC). What it brings to a whole step: ``benchmarks/step_cost.py``, the multiplicative rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["FEWEST", "packs", "small_products"]

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(addend, x, out) -> out = addend + x Wᵀ."""

FEWEST = 4  # products for which arranging the matrix pays


def small_products(weight: Tensor, rows: int, count: int) -> Product:
    """The function (addend, x, out) -> out = addend + x Wᵀ, for repeated use without gradients.

    Args:
        weight: W, with shape (G, H).
        rows: B, the rows of each x.
        count: how many products there will be.

    Example:
        >>> import torch
        >>> product = small_products(torch.eye(2), rows=1, count=35)
        >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.empty(1, 2))
        tensor([[2., 3.]])
    """
    if count >= FEWEST and packs(weight):
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
    """Whether oneDNN takes this matrix: float32 on a CPU, in a torch that has it.

    The two operations are torch's own, for its compiler, and not of its public interface; so they
    are tried once, and without them everything runs by ``addmm``.
    """
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return plain and weight.dtype == torch.float32 and weight.device.type == "cpu" and _works()


@cache
def _works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        library: Any = torch.ops.mkldnn
        packed = library._reorder_linear_weight(torch.eye(2), 1)
        done = library._linear_pointwise(torch.ones(1, 2), packed, None, "none", [], "")
    except Exception:  # another torch may lack them or want other arguments
        return False
    return bool((done == 1).all())
