"""Training: the folder it writes, the best epoch, and its options."""

import json
import math
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.linear_softmax import linear_log_softmax
from noisin_pyro.nn import emissions
from noisin_pyro.training.build import averaged_weights, build_model, build_noise, build_optimizer
from noisin_pyro.training.checkpoint import load_checkpoint
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import seeded
from noisin_pyro.training.folder import load_run
from noisin_pyro.training.run import train
from noisin_pyro.training.schedule import Schedule
from tests.training.runs import small


def test_a_run_leaves_its_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "record.json", "metrics.csv", "curves.png", "last.ckpt", "best.ckpt",
        "model.safetensors", "vocabulary.txt", "config.json", "deterministic", "previous.ckpt",
    }  # fmt: skip
    record = json.loads((finished / "record.json").read_text())
    assert set(record["models"]) == {"noisin", "deterministic"}
    for model in record["models"].values():
        perplexities = [row["valid_perplexity"] for row in model["history"]]
        assert len(perplexities) == 3
        assert perplexities[-1] < perplexities[0] < 23  # 21 words and two specials
        assert model["finished"]
    assert record["models"]["noisin"]["final"]["averaged"]["samples"] == 16
    assert record["models"]["deterministic"]["final"]["averaged"] is None
    spreads = [row["spread"] for row in record["models"]["noisin"]["history"]]
    assert len(spreads[0]) == 2 and spreads[0] != spreads[-1]  # learned, one per layer
    assert record["models"]["deterministic"]["history"][0]["spread"] == [None, None]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = (finished / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3


def test_the_exported_weights_are_the_best_epochs(finished: Path) -> None:
    _, _, model = load_run(finished)
    best = load_checkpoint(finished / "best.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, best["model"][name]), name


def test_training_leaves_torch_and_pyro_as_they_were(text: Path, tmp_path: Path) -> None:
    import pyro

    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(small(text, tmp_path / "run", epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(pyro.get_param_store())


def test_a_loss_that_is_not_finite_stops_the_run(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", optimizer="sgd", learning_rate=1e38, clip_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) in epoch 1 at step \d+ of"):
        train(replace(config, checkpoint_seconds=0.0))
    saved = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_the_best_checkpoint_is_the_best(text: Path, tmp_path: Path) -> None:
    record = train(small(text, tmp_path / "run", epochs=12, learning_rate=0.05, patience=2))
    model = record["models"]["deterministic"]
    losses = [row["valid_nats"] for row in model["history"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2  # patience
    assert model["best_epoch"] == best + 1
    assert load_checkpoint(tmp_path / "run/deterministic/best.ckpt")["epoch"] == best + 2
    mean_path = model["final"]["mean_path"]
    assert math.log(mean_path["valid"]) == pytest.approx(min(losses), abs=1e-6)


def test_tensorboard_logs_are_written_when_asked(text: Path, tmp_path: Path) -> None:
    """And closed at the end, with the thread that writes them."""
    before = set(threading.enumerate())
    train(small(text, tmp_path / "run", epochs=1, tensorboard=True))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert not [thread for thread in threading.enumerate() if thread not in before]


def test_bfloat16_trains_in_bfloat16(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products in halves, sums of losses and the evaluation in single precision."""
    seen = set()

    def head(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        seen.add((torch.is_grad_enabled(), F.linear(z, weight, bias).dtype))
        found = linear_log_softmax(z, weight, bias, target)
        assert found.dtype == torch.float32
        return found

    monkeypatch.setattr(emissions, "linear_log_softmax", head)
    curves = []
    for precision in ("32", "bf16-mixed"):
        seen.clear()
        record = train(small(text, tmp_path / precision, precision=precision, epochs=2))
        training = torch.float32 if precision == "32" else torch.bfloat16
        assert seen == {(True, training), (False, torch.float32)}
        curves.append([row["valid_nats"] for row in record["models"]["noisin"]["history"]])
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


@pytest.mark.slow
def test_two_processes_train(text: Path, tmp_path: Path) -> None:
    record = train(small(text, tmp_path / "run", devices=2, device="cpu"))
    losses = [row["valid_nats"] for row in record["models"]["noisin"]["history"]]
    assert losses[-1] < losses[0]


def test_schedules() -> None:
    halving = Schedule.parse("halve-after:4")
    assert [halving.factor(epoch, True) for epoch in (1, 3, 4, 5)] == [1, 1, 0.5, 0.5]
    dividing = Schedule.parse("divide-when-worse:1.2")
    assert dividing.factor(1, False) == 1
    assert dividing.factor(1, True) == pytest.approx(1 / 1.2)
    assert Schedule.parse("constant").factor(9, True) == 1


def test_the_schedule_moves_the_learning_rate(text: Path, tmp_path: Path) -> None:
    record = train(small(text, tmp_path / "run", schedule="halve-after:1", epochs=3, noise="none"))
    rates = [row["learning_rate"] for row in record["models"]["deterministic"]["history"]]
    assert rates == [0.01, 0.005, 0.0025]


def test_asgd_evaluates_the_average(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", optimizer="asgd", learning_rate=0.5)
    model = build_model(config, 23)
    weight = model.rnn.weight_hh_l0
    optimizer = build_optimizer(config, model, steps_per_epoch=2)
    trail = []
    for step in range(5):
        model.zero_grad()
        weight.grad = torch.full_like(weight, float(step))
        optimizer.step()
        trail.append(weight.detach().clone())
    last = weight.detach().clone()
    with averaged_weights(optimizer):
        # torch averages from step t0 + 2 = 4 on: until then its weight 1/max(1, t − t0) is 1
        torch.testing.assert_close(weight.detach(), torch.stack(trail[3:]).mean(0))
    assert torch.equal(weight, last)


def test_a_config_file_reproduces_the_configuration(tmp_path: Path) -> None:
    noise = {"class_path": "pyro.distributions.Gumbel"}
    config = TrainConfig(cell="gru", spread=[0.1, 0.2], layers=2, noise=noise, out=str(tmp_path))
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config


def test_a_noise_by_its_class_path() -> None:
    noise = {"class_path": "pyro.distributions.StudentT", "init_args": {"df": 5.0}}
    built = build_noise(TrainConfig(noise=noise, injection="additive"), 0.5)
    assert built.stddev == pytest.approx(math.sqrt(5 / 3))


def test_the_random_state_of_other_gpus_is_left_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would begin to use every one of them, and warn."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with seeded(1):
        torch.rand(1)
    old = shutil.copytree(finished, tmp_path / "old")
    (old / "config.json").unlink()
    load_run(old)
