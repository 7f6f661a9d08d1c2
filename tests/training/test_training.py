"""Training: the folder it writes, and that nothing a run has done is ever lost."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor

from noisin_pyro.kernels.linear_softmax import linear_log_softmax
from noisin_pyro.nn import emissions
from noisin_pyro.training.build import averaged_weights, build_model, build_noise, build_optimizer
from noisin_pyro.training.checkpoint import load_checkpoint
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.folder import load_run
from noisin_pyro.training.interrupt import Interrupted
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.run import train
from noisin_pyro.training.schedule import Schedule


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language with something to learn: each word has three likely successors."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for split, lines in (("train", 150), ("valid", 40), ("test", 40)):
        rows = []
        for _ in range(lines):
            word, row = draw.randrange(20), []
            for _ in range(9):
                row.append(f"w{word}")
                word = (3 * word + draw.choice([1, 2, 5])) % 20
            rows.append(" ".join(row))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


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


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(small(text, out, learn_spread=True, layers=2, dropout_layers=0.2))
    return out


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


KILLED = """
import sys
import threading
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.run import train
import yaml
train(TrainConfig(**yaml.safe_load(sys.argv[1])))
"""


@pytest.mark.parametrize("moment", [0.05, 0.6])
def test_killed_and_resumed_ends_as_if_it_had_not_been(
    text: Path, finished: Path, tmp_path: Path, moment: float
) -> None:
    """SIGKILL while checkpoints are written at every step, ``moment`` seconds after the first."""
    config = small(
        text, tmp_path / "run", learn_spread=True, layers=2, dropout_layers=0.2,
        checkpoint_seconds=0.0,
    )  # fmt: skip
    command = [sys.executable, "-c", KILLED, yaml.safe_dump(asdict(config))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=same_threads())
    wait_for(tmp_path / "run" / "last.ckpt", process)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was not over yet
    assert not (tmp_path / "run" / "deterministic" / "model.safetensors").exists()
    train(replace(config, resume=True))
    assert_same_outcome(tmp_path / "run", finished)


def test_ctrl_c_saves_and_exits_130(text: Path, finished: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", learn_spread=True, layers=2, dropout_layers=0.2)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "-m", "noisin_pyro", "train", "--config",
               str(tmp_path / "config.yaml")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=same_threads())
    wait_for(tmp_path / "run" / "config.yaml", process)
    while b"train_nats" not in read(tmp_path / "run" / "record.json"):  # the first epoch is over
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "--resume true" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    train(replace(config, resume=True))
    assert_same_outcome(tmp_path / "run", finished)


def test_ctrl_c_while_the_last_epoch_ends_is_heard(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trainer: Trainer, schedule: Schedule) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        end_epoch(trainer, schedule)

    end_epoch = Trainer._end_epoch
    config = small(text, tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_end_epoch", interrupted)
        with pytest.raises(Interrupted):
            train(config)
    assert not (tmp_path / "run" / "deterministic").exists()
    train(replace(config, resume=True))
    train(replace(config, out=str(tmp_path / "straight")))
    assert_same_outcome(tmp_path / "run", tmp_path / "straight")


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def same_threads() -> dict[str, str]:
    """Bit-identity is promised on one machine, so also for one number of threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    before = outcome(finished)
    config = TrainConfig.load(finished / "config.yaml")
    train(replace(config, resume=True))
    after = outcome(finished)
    assert after[2] == before[2]
    assert all(torch.equal(after[0][name], before[0][name]) for name in before[0])


def test_more_epochs_go_on_where_a_run_ended(text: Path, tmp_path: Path) -> None:
    train(small(text, tmp_path / "run", epochs=1))
    train(small(text, tmp_path / "run", epochs=2, resume=True))
    train(small(text, tmp_path / "straight", epochs=2))
    first, second = (outcome(tmp_path / name)[0] for name in ("run", "straight"))
    assert all(torch.equal(first[name], second[name]) for name in first)


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


# Configuration, optimizers, schedules


def test_schedules() -> None:
    halving = Schedule.parse("halve-after:4")
    assert [halving.factor(epoch, True) for epoch in (1, 3, 4, 5)] == [1, 1, 0.5, 0.5]
    dividing = Schedule.parse("divide-when-worse:1.2")
    assert dividing.factor(1, False) == 1
    assert dividing.factor(1, True) == pytest.approx(1 / 1.2)
    assert Schedule.parse("constant").factor(9, True) == 1


@pytest.mark.parametrize("text", ["halve", "halve-after:x", "divide-when-worse:1", "constant:3"])
def test_unknown_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"schedule must be constant, .* got '{text}'"):
        Schedule.parse(text)


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cell": "rnn_cosine"}, "unknown cell 'rnn_cosine'; the known ones are rnn_tanh"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; the known ones are adam, sgd, asgd"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"dropout_input": 1.0}, r"dropout_input must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"tied_weights": True, "hidden_size": 9}, "tied_weights needs embedding_size equal"),
        ({"devices": 3}, "batch_size must be a multiple of 3 devices, got 20"),
    ],
)
def test_bad_configurations_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"noise": "brown"}, "unknown noise 'brown'; the known ones are none, gaussian, laplace"),
        ({"noise": "pyro.distributions.Cauchy"}, "noise 'pyro.distributions.Cauchy' cannot be"),
        ({"noise": {"class_path": "torch.distributions.X"}}, "cannot be built"),
        ({"spread": [0.1, 0.2]}, "spread needs one value or one for each of the 1 layers, got 2"),
        ({"spread": 0.0}, "spread must be positive and finite, got 0.0"),
        ({"spread": math.inf}, "spread must be positive and finite, got inf"),
        ({"spread": 0.05, "learn_spread": True}, "must start above its floor 0.1, got 0.05"),
        (
            {"corpus": "nowhere"},
            "corpus must be one of enwik8, hmm, ptb, pydoc, text8, wikitext-103, wikitext-2 or the",
        ),
        (
            {"batch_size": 2000},
            r"split of text\d* has 1500 tokens, it needs at least 4000; .* smaller batch_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_written(
    text: Path, tmp_path: Path, changes: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(small(text, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(text: Path, finished: Path) -> None:
    before = (finished / "record.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume true, or"):
        train(small(text, finished))
    assert (finished / "record.json").read_bytes() == before


def test_another_architecture_does_not_resume_a_run(text: Path, finished: Path) -> None:
    config = TrainConfig.load(finished / "config.yaml")
    with pytest.raises(ValueError, match="has hidden_size 24, got 32; resume it with its own"):
        train(replace(config, hidden_size=32, resume=True))


def test_resuming_nothing_starts_it(text: Path, tmp_path: Path) -> None:
    """A scheduler's script need not tell the first start from the others."""
    train(small(text, tmp_path / "run", resume=True, epochs=1, noise="none"))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_out_that_cannot_be_written_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* choose another folder"):
        train(small(text, tmp_path / "file" / "run"))


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_checkpoint_is_refused(text: Path, tmp_path: Path, keep: int) -> None:
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:keep])
    (last.parent / "previous.ckpt").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"last.ckpt is damaged, its file cannot be used \(it is trunc"
    ):
        train(replace(config, resume=True))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_without_its_best_checkpoint_a_run_says_what_is_missing(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    best = tmp_path / "run" / "best.ckpt"
    best.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"best.ckpt is damaged, .* bring it back from a copy"):
        train(replace(config, resume=True))
    best.unlink()
    with pytest.raises(ValueError, match="best.ckpt is missing; bring it back from a copy"):
        train(replace(config, resume=True))
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    train(replace(config, resume=True))


def test_a_run_does_not_go_on_with_another_text(text: Path, tmp_path: Path) -> None:
    """As many words, and as many different ones, but other ids."""
    shutil.copytree(text, tmp_path / "text")
    config = small(tmp_path / "text", tmp_path / "run", epochs=1)
    train(config)
    vocabulary = (tmp_path / "run" / "vocabulary.txt").read_text()
    for path in (tmp_path / "text").iterdir():
        path.write_text(path.read_text().replace("w1 ", "other "))
    with pytest.raises(
        ValueError, match="vocabulary.txt is of another text .* bring that text back"
    ):
        train(replace(config, epochs=2, resume=True))
    assert (tmp_path / "run" / "vocabulary.txt").read_text() == vocabulary


def test_a_half_written_checkpoint_is_never_read(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    before = outcome(tmp_path / "run")
    (tmp_path / "run" / "last.ckpt.partial").write_bytes(b"half of a checkpoint")
    train(replace(config, resume=True))
    assert outcome(tmp_path / "run")[2] == before[2]
