"""What tests of whole runs share: a text, a small configuration, the comparison of two folders."""

import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from noisin_pyro.training.config import TrainConfig


def random_words(path: Path) -> Path:
    """Writes a text of 150 lines of nine words, drawn from twelve; returns its path."""
    draw = random.Random(0)
    lines = (" ".join(f"w{draw.randrange(12)}" for _ in range(9)) for _ in range(150))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small(text: Path, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        corpus=str(text),
        embedding_size=16,
        hidden_size=24,
        spread=0.4,
        learning_rate=0.01,
        epochs=3,
        patience=0,
        batch_size=4,
        unroll=7,
        out=str(out),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def outcome(folder: Path) -> tuple[dict, dict, dict]:
    """What a run must reproduce to the bit: its weights, the twin's, its record but for times."""
    record = json.loads((folder / "record.json").read_text())
    for model in record["models"].values():
        del model["timing"]
    for name in ("out", "checkpoint_seconds"):
        del record["config"][name]
    twin = folder / "deterministic"
    return load_file(folder / "model.safetensors"), load_file(twin / "model.safetensors"), record


def assert_same_outcome(left: Path, right: Path) -> None:
    for one, other in zip(outcome(left)[:2], outcome(right)[:2]):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert outcome(left)[2] == outcome(right)[2]
