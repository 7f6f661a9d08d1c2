"""Every option of ``noisin train`` changes what is trained, or is named as one that must not."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, make_fabric
from noisin_pyro.training.text import load_text

#: What the option is changed to, and what else must be set for it to act.
ACTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tokens": ("characters", {}),
    "train_tokens": (300, {}),
    "cell": ("gru", {}),
    "embedding_size": (12, {}),
    "hidden_size": (12, {}),
    "layers": (1, {}),
    "noise": ("laplace", {}),
    "injection": ("additive", {}),
    "spread": (0.7, {}),
    "learn_spread": (True, {}),
    "spread_floor": (0.3, {"learn_spread": True}),
    "noise_to": ("output", {}),
    "tied": (True, {}),
    "variational_dropout": (0.2, {"noise": "none"}),
    "zoneout": (0.1, {}),
    "weight_drop": (0.2, {}),
    "dropout": (0.2, {}),
    "dropout_words": (0.2, {}),
    "dropout_input": (0.2, {}),
    "dropout_layers": (0.2, {}),
    "dropout_output": (0.2, {}),
    "tied_weights": (True, {}),
    "optimizer": ("sgd", {}),
    "learning_rate": (0.02, {}),
    "schedule": ("halve-after:1", {"epochs": 3}),
    "weight_decay": (0.1, {}),
    "clip_norm": (0.01, {"optimizer": "sgd"}),
    "epochs": (1, {}),
    "patience": (1, {"epochs": 12, "learning_rate": 0.1, "noise": "none"}),
    "batch_size": (2, {}),
    "unroll": (9, {}),
    "seed": (2, {}),
    "precision": ("bf16-mixed", {}),
}
#: ``epochs`` as it is: two runs alike are alike.
SAME: dict[str, Any] = {"epochs": 2, "quiet": True, "checkpoint_seconds": 0.0, "trust_code": True}
#: Where the text is, where the run goes, and in which processes: other tests are about them.
PLACES = {"corpus", "data_dir", "out", "resume", "tensorboard", "device", "devices", "nodes"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw = random.Random(0)
    lines = [" ".join(f"w{draw.randrange(20)}" for _ in range(9)) for _ in range(120)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trained(text: Path, folder: Path, **options: Any) -> tuple[list[float], list[torch.Tensor]]:
    """The course of a small training and the weights at its end."""
    base = TrainConfig(
        corpus=str(text), embedding_size=8, hidden_size=8, layers=2, spread=0.4,
        learning_rate=0.01, epochs=2, patience=0, batch_size=4, unroll=7, out=str(folder),
        device="cpu",
    )  # fmt: skip
    config = replace(base, **options)
    folder.mkdir()
    losses: list[float] = []

    def on_epoch(progress: Any) -> None:
        losses[:] = [row["valid"] for row in progress.history]

    model = fit_model(
        make_fabric(config), config, load_text(config), folder, "noisin", on_epoch=on_epoch
    )
    return losses, [weight.detach() for weight in model.parameters()]


def same(left: Any, right: Any) -> bool:
    equal = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(left[1], right[1])]
    return left[0] == right[0] and len(left[1]) == len(right[1]) and all(equal)


@pytest.mark.parametrize("name", ACTS)
def test_an_option_changes_the_training(text: Path, tmp_path: Path, name: str) -> None:
    value, others = ACTS[name]
    left = trained(text, tmp_path / "left", **others)
    assert not same(left, trained(text, tmp_path / "right", **others, **{name: value}))


@pytest.mark.parametrize("name", SAME)
def test_an_option_that_must_not(text: Path, tmp_path: Path, name: str) -> None:
    left = trained(text, tmp_path / "left")
    assert same(left, trained(text, tmp_path / "right", **{name: SAME[name]}))


@pytest.mark.parametrize("name", ["injection", "spread", "noise_to"])
def test_an_option_of_the_noise_without_noise(text: Path, tmp_path: Path, name: str) -> None:
    """As the help of ``--noise`` says, also where the states are random for another reason."""
    others = {"noise": "none", "zoneout": 0.1, "dropout": 0.2}
    left = trained(text, tmp_path / "left", **others)
    assert same(left, trained(text, tmp_path / "right", **others, **{name: ACTS[name][0]}))


def test_every_option_is_here() -> None:
    assert {field.name for field in fields(TrainConfig)} == {*ACTS, *SAME, *PLACES}
