"""What a run writes beside its record, and what it prints, are the record's numbers."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.training import loop
from noisin_pyro.training.checkpoint import load_checkpoint
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.report import render_table
from noisin_pyro.training.run import train

READER = "tensorboard.backend.event_processing.event_accumulator"


def config(folder: Path, **options: Any) -> TrainConfig:
    """A run whose best epoch is not its last one, on a text of characters."""
    draw, path = random.Random(0), folder / "words.txt"
    lines = (" ".join(f"w{draw.randrange(20)}" for _ in range(9)) for _ in range(70))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return TrainConfig(
        corpus=str(path), tokens="characters", embedding_size=8, hidden_size=8, layers=2,
        noise_to="output", learn_spread=True, learning_rate=1.0, epochs=4, patience=0, batch_size=5,
        unroll=20, device="cpu", quiet=True, out=str(folder / "run"), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(config(folder, tensorboard=True))
    return folder / "run"


@pytest.fixture(scope="module")
def models(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "record.json").read_text())
    assert any(m["best_epoch"] < len(m["history"]) for m in record["models"].values())
    found: dict[str, Any] = record["models"]
    return found


def test_the_metrics_are_the_records(run: Path, models: dict[str, Any]) -> None:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = [(label, row) for label, model in models.items() for row in model["history"]]
    assert [row["model"] for row in rows] == [label for label, _ in told]
    for row, (_, epoch) in zip(rows, told, strict=True):
        spreads = [value for value in epoch.pop("spread") if value is not None]
        assert [float(value) for value in row["spread"].split()] == pytest.approx(spreads, rel=1e-5)
        assert {name: float(row[name]) for name in epoch} == epoch
        epoch["spread"] = spreads
        for split in ("train", "valid"):
            assert epoch[f"{split}_perplexity"] == pytest.approx(math.exp(epoch[f"{split}_nats"]))


@pytest.mark.filterwarnings("ignore")  # those of TensorBoard's reader
def test_the_logs_are_the_records(run: Path, models: dict[str, Any]) -> None:
    reader: Any = importlib.import_module(READER)
    logs = reader.EventAccumulator(str(run / "tensorboard"))
    logs.Reload()
    for label, model in models.items():
        for split in ("train", "valid"):
            events = logs.Scalars(f"{label}/{split}_perplexity")
            assert [event.step for event in events] == [1, 2, 3, 4]
            told = [row[f"{split}_perplexity"] for row in model["history"]]
            assert [event.value for event in events] == pytest.approx(told, rel=1e-6)
    for layer in (0, 1):
        events = logs.Scalars(f"noisin/spread_l{layer}")
        told = [row["spread"][layer] for row in models["noisin"]["history"]]
        assert [event.value for event in events] == pytest.approx(told, rel=1e-6)


def test_the_table_is_the_records(run: Path, models: dict[str, Any]) -> None:
    record = json.loads((run / "record.json").read_text())
    lines = render_table(record).splitlines()
    names = [name for name, _ in itertools.groupby(line.split("  ")[0] for line in lines)]
    cells = {name: line[len(name) :].split() for name, line in zip(names, lines)}
    noisy, twin = models["noisin"], models["deterministic"]
    for split in ("train", "valid", "test"):
        for how, key in (("mean path", "mean_path"), ("averaged (16 samples)", "averaged")):
            finals = [model["final"][key] for model in (noisy, twin)]
            told = [f"{final[split]:.2f}" if final else "-" for final in finals]
            assert cells[f"{split}, {how}"] == told
        bits = [math.log2(model["final"]["mean_path"][split]) for model in (noisy, twin)]
        assert cells[f"{split}, bits per character"] == [f"{value:.4f}" for value in bits]
    for model, column in ((noisy, 0), (twin, 1)):
        best = model["history"][model["best_epoch"] - 1]
        assert best["valid_nats"] == min(row["valid_nats"] for row in model["history"])
        place = cells["best epoch of"][3 * column : 3 * column + 3]
        assert place == [str(model["best_epoch"]), "/", str(len(model["history"]))]
    spread = noisy["history"][noisy["best_epoch"] - 1]["spread"]
    assert cells["γ per layer, best epoch"] == [*(f"{value:.3f}" for value in spread), "-"]


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once a step: within an epoch there is one every four steps."""
    ticks, save = itertools.count(), Trainer._save
    saved: list[tuple[int, int]] = []

    def recording(trainer: Trainer, name: str) -> None:
        save(trainer, name)
        if name == "last.ckpt":
            found = load_checkpoint(trainer.folder / name)
            saved.append((found["epoch"], found["step"]))
            next(ticks)  # saving takes no time

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return float(next(ticks))

    monkeypatch.setattr(loop, "time", Clock)
    monkeypatch.setattr(Trainer, "_save", recording)
    base = config(tmp_path, checkpoint_seconds=4.0)
    train(TrainConfig(**{**base.to_dict(), "noise": "none", "learn_spread": False, "epochs": 1}))
    steps = [step for epoch, step in saved if epoch == 1]
    assert len(steps) > 2 and saved[-1] == (2, 0)
    assert {after - before for before, after in zip([0, *steps], steps)} <= {3, 4, 5}
