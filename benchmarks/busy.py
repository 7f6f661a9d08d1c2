"""What a recurrent network takes while other programs use the cores.

    python benchmarks/busy.py
    python benchmarks/busy.py --json results/busy/cpu.json

A forward and backward pass of torch.nn.LSTM and of NoisyLSTM, quiet and beside one idle loop per
core, with torch's own settings, with GOMP_SPINCOUNT=1000 and with OMP_NUM_THREADS=1. Each is
measured in a fresh process, because OpenMP reads these variables once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from noisin_pyro import Multiplicative, NoisyLSTM
from noisin_pyro.training.record import environment

STEPS, BATCH, UNITS, LAYERS = 35, 20, 128, 2
SETTINGS = ("", "GOMP_SPINCOUNT=1000", "OMP_NUM_THREADS=1")
NETWORKS = ("torch", "multiplicative")


@contextmanager
def others(count: int) -> Iterator[None]:
    """Runs idle loops in the background."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def passes(network: str, seconds: float) -> list[float]:
    """The seconds that each pass takes, for some time."""
    noise = Multiplicative(dist.Normal(0.0, 1.0))
    sizes = (UNITS, UNITS, LAYERS)
    rnn: nn.Module = nn.LSTM(*sizes) if network == "torch" else NoisyLSTM(*sizes, noise=noise)
    x, grad = (torch.randn(STEPS, BATCH, UNITS) for _ in range(2))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        rnn(x)[0].backward(grad)
        times.append(time.perf_counter() - start)
    return times[1:]


def measured(network: str, setting: str, seconds: float) -> float:
    """The median seconds of a pass, in a process with this setting."""
    names = [name.split("=")[0] for name in (*SETTINGS, "OMP_WAIT_POLICY") if name]
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= dict([setting.split("=")] if setting else [])
    command = [sys.executable, __file__, "--pass", network, "--seconds", str(seconds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return median(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    parser.add_argument("--pass", dest="network", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.network:
        print(json.dumps(passes(args.network, args.seconds)))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record: dict[str, Any] = {"schema": 1, **environment(), "rows": []}
    record |= {"steps": STEPS, "batch": BATCH, "units": UNITS, "layers": LAYERS}
    for count in (0, cores or 1):
        for network in NETWORKS:
            with others(count):
                times = {
                    name or "torch's": measured(network, name, args.seconds) for name in SETTINGS
                }
            record["rows"].append({"others": count, "network": network, "seconds": times})
            shown = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in times.items())
            print(f"{network}, beside {count} others: {shown}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
