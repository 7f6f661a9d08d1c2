"""Matrix products in single precision on a CPU: torch's own, and ours by oneDNN.

    python benchmarks/products.py

The three products of a linear layer, forwards and for both gradients, side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.onednn import linear, outer

ROWS = 700  # a window of 35 steps, 20 sequences
SHAPES = {"head 256": (256, 10_000), "head 650": (650, 10_000), "lstm 650": (650, 2_600)}
ROUNDS = 15


def seconds(*calls: Callable[[], object]) -> list[float]:
    """Medians of the calls, taken in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 2):
        for call, times in zip(calls, found):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [median(times[2:]) for times in found]


Call = Callable[[], Tensor]


def products(x: Tensor, grad: Tensor, weight: Tensor) -> dict[str, tuple[Call, Call]]:
    """By name, the same product by torch and by oneDNN."""
    return {
        "x Wᵀ": (lambda: F.linear(x, weight), lambda: linear(x, weight)),
        "g W": (lambda: grad @ weight, lambda: linear(grad, weight.t())),
        "gᵀ x": (lambda: grad.t() @ x, lambda: outer(grad, x)),
    }


def main() -> None:
    """Prints a line for each product; the last figure is torch's time over ours."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    for name, (inputs, outputs) in SHAPES.items():
        tensors = (
            torch.randn(ROWS, inputs),
            torch.randn(ROWS, outputs),
            torch.randn(outputs, inputs),
        )
        for product, (theirs, ours) in products(*tensors).items():
            torch.testing.assert_close(theirs(), ours(), rtol=1e-3, atol=1e-2)
            a, b = (1e3 * time for time in seconds(theirs, ours))
            print(f"{name:9} {product:5} torch {a:6.2f} ms  ours {b:6.2f} ms  {a / b:.2f}")


if __name__ == "__main__":
    main()
