"""Kills trainings at random moments, and compares their results with those of undisturbed ones.

    python benchmarks/kills.py --json results/kills/cpu.json

For every cell and optimizer, a tiny training of ``noisin train`` is killed by SIGKILL after a time
drawn uniformly from the duration of an undisturbed one, resumed, killed again, and so on, until it
ends. Then its weights, vocabulary and record, but for times, are compared with those of the
undisturbed one, and the next begins, until the requested number of kills is reached. The trainings
are forked from this process, which has imported their modules, so that kills hit the training and
not the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from noisin_pyro.nn.registry import RNNS
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.environment import environment
from noisin_pyro.training.record import write_record
from noisin_pyro.training.run import train

OPTIMIZERS = {"adam": 0.01, "sgd": 1.0, "asgd": 1.0}
FILES = ("model.safetensors", "deterministic/model.safetensors", "vocabulary.txt", "config.yaml")


def main(arguments: list[str] | None = None) -> None:
    """Adds the outcome for each cell and optimizer to a record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="the record to add to")
    parser.add_argument("--cells", nargs="+", default=list(RNNS), choices=RNNS, metavar="CELL")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--kills", type=int, default=13, help="for each cell and optimizer")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"schema": 1, **environment(), "rows": []}
    if options.json.exists():
        record["rows"] = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory() as folder:
        # Loads the modules that are imported at their first use.
        train(tiny(Path(folder), "lstm", "adam"))
    for cell in options.cells:
        for optimizer in options.optimizers:
            others = [r for r in record["rows"] if (r["cell"], r["optimizer"]) != (cell, optimizer)]
            with tempfile.TemporaryDirectory() as folder:
                row = disturb(Path(folder), cell, optimizer, options.kills)
            print(json.dumps(row), flush=True)
            record["rows"] = [*others, row]
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_record(options.json, record)


def tiny(folder: Path, cell: str, optimizer: str) -> TrainConfig:
    """A training of a second or so, on a text that is written to the folder."""
    text = folder / "words.txt"
    draw = random.Random(0)
    lines = (" ".join(f"w{draw.randrange(30)}" for _ in range(9)) for _ in range(150))
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TrainConfig(
        corpus=str(text), cell=cell, optimizer=optimizer, learning_rate=OPTIMIZERS[optimizer],
        embedding_size=8, hidden_size=8, epochs=2, batch_size=4, unroll=20, resume=True, quiet=True,
        checkpoint_seconds=0.2, out=str(folder / "run"),
    )  # fmt: skip


def disturb(folder: Path, cell: str, optimizer: str, kills: int) -> dict[str, Any]:
    """The kills of one cell and optimizer by stage, and how the trainings ended."""
    config, draw = tiny(folder, cell, optimizer), random.Random(f"{cell} {optimizer}")
    start = time.monotonic()
    code = run(config, None)
    duration = time.monotonic() - start
    if code:
        raise SystemExit(f"an undisturbed training of {cell} with {optimizer} ended with {code}")
    wanted = outcome(folder / "run")
    stages = {"before the first checkpoint": 0, "the noisy model": 0, "its twin": 0}
    trainings = identical = failed = 0
    while sum(stages.values()) < kills:
        shutil.rmtree(folder / "run")
        while True:
            left = kills - sum(stages.values())
            code = run(config, draw.uniform(0.0, duration) if left else None)
            if code != -signal.SIGKILL:
                break
            stages[stage(folder / "run")] += 1
        trainings += 1
        failed += code != 0
        identical += code == 0 and outcome(folder / "run") == wanted
    return {
        "cell": cell,
        "optimizer": optimizer,
        "kills": stages,
        "trainings": trainings,
        "identical": identical,
        "failed": failed,
        "seconds": duration,
    }


def run(config: TrainConfig, kill_after: float | None) -> int:
    """Trains in a forked process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(config)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + kill_after if kill_after is not None else None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


def stage(out: Path) -> str:
    """The stage at which a training was killed, from the files in its folder."""
    if (out / "deterministic").exists():
        return "its twin"
    return "the noisy model" if (out / "last.ckpt").exists() else "before the first checkpoint"


def outcome(out: Path) -> tuple[list[bytes], Any]:
    """The results that must not depend on kills."""
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    for model in record["models"].values():
        del model["timing"]
    return [(out / name).read_bytes() for name in FILES], record


if __name__ == "__main__":
    torch.set_num_threads(1)  # torch's other threads would not be forked
    main()
