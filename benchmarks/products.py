"""Products and tanh in single precision on a CPU: torch's own, the other way, and which we take.

    python benchmarks/products.py

The three products of a linear layer, forwards and for both gradients, side by side: of one step of
a recurrence, of a layer over a window of 35 steps, and of the head. And tanh of the states of one
step: torch's own, and 2σ(2x) − 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.onednn import linear, outer
from noisin_pyro.kernels.tanh import tanh, to_tanh_

#: The rows, the width of the input and that of the output; 20 sequences.
SHAPES = {
    "step 32": (20, 32, 128),
    "step 128": (20, 128, 512),
    "step 650": (20, 650, 2_600),
    "layer 32": (700, 32, 128),
    "layer 128": (700, 128, 512),
    "layer 650": (700, 650, 2_600),
    "head 256": (700, 256, 10_000),
    "head 650": (700, 650, 10_000),
}
UNITS = (32, 128, 650)
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


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]


def products(x: Tensor, grad: Tensor, weight: Tensor) -> dict[str, tuple[Call, Call, Call]]:
    """By name, the same product by torch, by oneDNN, and by the one that we take."""
    return {
        "x Wᵀ": (
            lambda: F.linear(x, weight),
            lambda: onednn(x, weight),
            lambda: linear(x, weight),
        ),
        "g W": (
            lambda: grad @ weight,
            lambda: onednn(grad, weight.t()),
            lambda: linear(grad, weight.t()),
        ),
        "gᵀ x": (
            lambda: grad.t() @ x,
            lambda: onednn(x.t(), grad.t()).t().contiguous(),
            lambda: outer(grad, x),
        ),
    }


def tanhs(x: Tensor, out: Tensor) -> tuple[Call, Call, Call]:
    """tanh x, written into ``out``, by torch, by the sigmoid, and by the one that we take."""
    return (
        lambda: torch.tanh(x, out=out),
        lambda: to_tanh_(torch.add(x, x, out=out).sigmoid_()),
        lambda: tanh(x, out=out),
    )


def main() -> None:
    """Prints a line for each operation; the last figure is torch's time over the other way's."""
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {capability}")
    for name, (rows, inputs, outputs) in SHAPES.items():
        tensors = (
            torch.randn(rows, inputs),
            torch.randn(rows, outputs),
            torch.randn(outputs, inputs),
        )
        for product, calls in products(*tensors).items():
            expected = calls[0]()
            for call in calls[1:]:
                torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-2)
            a, b, ours = (1e6 * time for time in seconds(*calls))
            print(
                f"{name:9} {product:5} torch {a:8.0f} µs  oneDNN {b:8.0f} µs  ours {ours:8.0f} µs"
                f"  {a / b:.2f}"
            )
    for units in UNITS:
        x = torch.randn(20, units)
        a, b, ours = (1e6 * time for time in seconds(*tanhs(x, torch.empty_like(x))))
        print(
            f"tanh of {units:4} units torch {a:6.1f} µs  by σ {b:6.1f} µs  ours {ours:6.1f} µs"
            f"  {a / b:.2f}"
        )


if __name__ == "__main__":
    main()
