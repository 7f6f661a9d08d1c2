"""What a linear recurrence costs over long sequences, against torch's LSTM and GRU.

    python benchmarks/long_sequences.py
    python benchmarks/long_sequences.py --json results/long-sequences/cpu.json

One layer, forward and backward to its weights and its input: torch.nn.LSTM (ratio 1), torch.nn.GRU,
and NoisyMinGRU, without noise, with additive and with multiplicative Gaussian noise inside the
recurrence, drawn anew in each pass, and without noise by the readable loop; and the minGRU's three
matrix products alone, which no way to compute its recurrence can go below. Variants run in turn,
A B C A B C ..., in one process; ratios are taken round by round, and the median is reported with
its quartiles. Memory is measured in a fresh process for each variant. Growth is the slope of log
seconds over log T.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from step_cost import Clock, interleaved, show, slope, summary
from torch import nn

from noisin_pyro import Additive, Multiplicative, NoisyMinGRU
from noisin_pyro.cells.base import Cell
from noisin_pyro.cells.mingru import MinGRUCell
from noisin_pyro.kernels.onednn import linear, outer
from noisin_pyro.training.record import environment

BATCH, HIDDEN = 8, 256
LENGTHS = (256, 1024, 4096)
VARIANTS = ("lstm", "gru", "mingru", "mingru additive", "mingru multiplicative", "mingru loop",
            "products")  # fmt: skip
NOISELESS = "mingru"
NOISY = ("mingru additive", "mingru multiplicative")
SPREAD = 0.5  # standard deviation of the noise, or its coefficient of variation
NORMAL = dist.Normal(0.0, 1.0)
NOISES = {"additive": Additive(NORMAL), "multiplicative": Multiplicative(NORMAL)}


class Readable(MinGRUCell):
    """The same cell by the loop over steps that every cell has."""

    run, scan = Cell.run, Cell.scan


def build(variant: str, steps: int, batch: int, hidden: int, device: str) -> Callable[[], None]:
    """One forward and backward pass."""
    if variant == "products":
        return products(steps * batch, hidden, device)
    layer: nn.Module
    name, _, option = variant.partition(" ")
    if name == "mingru":
        layer = NoisyMinGRU(hidden, hidden, noise=NOISES.get(option), spread=SPREAD)
        layer.cell = Readable() if option == "loop" else layer.cell
    else:
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[name](hidden, hidden)
    layer.to(device)
    x = torch.randn(steps, batch, hidden, device=device, requires_grad=True)
    grad = torch.randn(steps, batch, hidden, device=device)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(grad)

    return step


def products(rows: int, hidden: int, device: str) -> Callable[[], None]:
    """The three matrix products of a minGRU, by what it computes them with."""
    x, gates = (
        torch.randn(rows, hidden, device=device),
        torch.randn(rows, 2 * hidden, device=device),
    )
    weight = torch.randn(2 * hidden, hidden, device=device)

    def step() -> None:
        linear(x, weight), linear(gates, weight.t()), outer(gates, x)

    return step


def speed(
    lengths: Sequence[int], batch: int, hidden: int, rounds: int, clock: Clock
) -> list[dict[str, Any]]:
    rows = []
    for steps in lengths:
        calls = {name: build(name, steps, batch, hidden, clock.device) for name in VARIANTS}
        times = interleaved(calls, rounds, clock)
        variants = {name: summary(times[name], times["lstm"]) for name in VARIANTS}
        over = {name: summary(times[name], times[NOISELESS])["ratio"] for name in NOISY}
        show(f"T = {steps}", variants)
        for name, ratio in over.items():
            print(f"  {name} over noiseless: {ratio:.3f}")
        rows.append({"steps": steps, "variants": variants, "over_noiseless": over})
    return rows


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    sizes = [math.log(row["steps"]) for row in rows]
    exponents = {}
    for name in VARIANTS:
        exponents[name] = slope(sizes, [math.log(r["variants"][name]["seconds"]) for r in rows])
        print(f"  {name:22} exponent {exponents[name]:.3f}")
    return exponents


def memory(steps: int, batch: int, hidden: int, device: str) -> dict[str, dict[str, float]]:
    """Peak memory in MiB, and above what the imports took, and its ratio to the noiseless."""
    variants: dict[str, dict[str, float]] = {}
    for name in (NOISELESS, *NOISY):
        job = json.dumps({"variant": name, "steps": steps, "batch": batch, "hidden": hidden,
                          "device": device})  # fmt: skip
        command = [sys.executable, __file__, "--peak", job, "--threads",
                   str(torch.get_num_threads())]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = variants[name] = json.loads(done.stdout)
        for key in ("peak", "above_imports"):
            row[f"{key}_ratio"] = row[key] / max(variants[NOISELESS][key], 1e-9)
        print(f"  {name:22} {row['peak']:6.0f} MiB {row['peak_ratio']:.3f}   above imports "
              f"{row['above_imports']:6.0f} MiB {row['above_imports_ratio']:.3f}")  # fmt: skip
    return variants


def peak(variant: str, steps: int, batch: int, hidden: int, device: str) -> None:
    """Prints the peak of one variant; runs in a process of its own."""
    before = resident()
    step = build(variant, steps, batch, hidden, device)
    for _ in range(3):
        step()
    if device == "cuda":
        most = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps({"peak": most, "above_imports": most}))
    else:
        print(json.dumps({"peak": resident(), "above_imports": resident() - before}))


def resident() -> float:
    """The largest resident set of this process so far, in MiB."""
    try:  # a child's ru_maxrss starts at its parent's, VmHWM does not
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch; its own choice if omitted")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak:
        peak(**json.loads(args.peak))
        return
    lengths, batch, hidden = ((20, 300), 2, 8) if args.quick else (LENGTHS, BATCH, HIDDEN)
    torch.manual_seed(0)
    record: dict[str, Any] = {"schema": 1, **environment(), "device": args.device}
    record |= {"rounds": args.rounds, "batch": batch, "hidden": hidden, "spread": SPREAD}
    record["speed"] = speed(lengths, batch, hidden, args.rounds, Clock(args.device))
    print("growth in T")
    record["growth"] = growth(record["speed"])
    print(f"memory at T = {lengths[-1]}")
    record["memory"] = memory(lengths[-1], batch, hidden, args.device)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
