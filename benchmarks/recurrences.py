"""What noise costs in a recurrent network alone, without a head: forward and backward.

    python benchmarks/recurrences.py
    python benchmarks/recurrences.py --json results/recurrences/cpu.json

Two layers of torch.nn.LSTM, GRU and RNN (ratio 1), and ours of the same size without noise, with
additive and with multiplicative Gaussian noise, drawn anew in each pass. Variants run in turn in
one process; ratios are taken round by round, and the median is reported with its quartiles. In a
language model the head takes most of the time (``step_cost.py``); here there is none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from step_cost import Clock, interleaved, show, summary
from torch import nn

from noisin_pyro import Additive, Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN
from noisin_pyro.training.record import environment

STEPS, BATCH, LAYERS = 35, 20, 2
UNITS = (32, 128, 256, 650)
CELLS: dict[str, tuple[Any, Any]] = {
    "lstm": (nn.LSTM, NoisyLSTM),
    "gru": (nn.GRU, NoisyGRU),
    "tanh": (nn.RNN, NoisyRNN),
}
NORMAL = dist.Normal(0.0, 1.0)
NOISES = {
    "clean": None,
    "additive": Additive(NORMAL),
    "multiplicative": Multiplicative(NORMAL),
}
SPREAD = 0.5  # standard deviation of the noise, or its coefficient of variation


def build(variant: str, cell: str, units: int, device: str) -> Callable[[], None]:
    """One forward and backward pass."""
    theirs, ours = CELLS[cell]
    sizes = (units, units, LAYERS)
    rnn: nn.Module = (
        theirs(*sizes) if variant == "torch" else ours(*sizes, noise=NOISES[variant], spread=SPREAD)
    )
    rnn.to(device)
    x = torch.randn(STEPS, BATCH, units, device=device, requires_grad=True)
    grad = torch.randn(STEPS, BATCH, units, device=device)

    def step() -> None:
        rnn.zero_grad()
        x.grad = None
        rnn(x)[0].backward(grad)

    return step


def speed(units: Sequence[int], rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """A row for each cell and number of units."""
    rows = []
    for cell in CELLS:
        for size in units:
            names = ("torch", *NOISES)
            calls = {name: build(name, cell, size, clock.device) for name in names}
            times = interleaved(calls, rounds, clock)
            variants = {name: summary(times[name], times["torch"]) for name in names}
            show(f"{cell}, {size} units", variants)
            rows.append({"cell": cell, "units": size, "variants": variants})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch; its own choice if omitted")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    record: dict[str, Any] = {"schema": 1, **environment(), "device": args.device}
    record |= {"rounds": args.rounds, "steps": STEPS, "batch": BATCH, "layers": LAYERS}
    record |= {"spread": SPREAD, "capability": torch.backends.cpu.get_cpu_capability()}
    record["speed"] = speed((4,) if args.quick else UNITS, args.rounds, Clock(args.device))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
