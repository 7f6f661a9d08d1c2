"""Nothing that a run has done is lost: kills, Ctrl-C, and going on."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from noisin_pyro.training import loop, run
from noisin_pyro.training.checkpoint import load_checkpoint, save_checkpoint
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import measure
from noisin_pyro.training.interrupt import Interrupted
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.run import train
from noisin_pyro.training.schedule import Schedule
from tests.training.disasters import half_written
from tests.training.runs import assert_same_outcome, outcome, small

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


def test_what_was_measured_is_not_measured_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the history, or the version of a library, is another."""
    config = small(text, tmp_path / "run", epochs=1)
    first = train(config)
    measured = []

    def count(*arguments: Any) -> dict[str, float]:
        measured.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(run, "measure", count)
    again = train(replace(config, resume=True))
    assert not measured
    assert again["models"]["noisin"]["final"] == first["models"]["noisin"]["final"]
    path = tmp_path / "run" / "record.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    train(replace(config, resume=True))
    assert len(measured) == 3
    train(replace(config, resume=True, epochs=2))
    assert len(measured) == 6


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_the_best_epoch_is_one_of_the_record(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """If an epoch's checkpoint could not be written, and the epoch is trained anew otherwise."""
    config = small(text, tmp_path / "run", noise="none", checkpoint_seconds=0.0)

    def disk_is_full(path: Path, payload: dict[str, Any], keep: Path | None = None) -> None:
        last, epoch, step = path.name == "last.ckpt", payload["epoch"], payload["step"]
        if last and epoch == 3:
            raise OSError(errno.ENOSPC, "full", str(path))
        if not last or epoch == 1 or step == 1:  # the last one is of the second epoch's first step
            save_checkpoint(path, payload, keep)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", disk_is_full)
        with pytest.raises(OSError):
            train(config)
    model = train(replace(config, resume=True, learning_rate=rate))["models"]["deterministic"]
    best = load_checkpoint(tmp_path / "run" / "best.ckpt")["history"]
    assert (model["best_epoch"] == 1) == (rate == 1)  # with which Adam makes things worse
    assert [row["valid"] for row in best] == [
        row["valid_nats"] for row in model["history"][: model["best_epoch"]]
    ]


def test_a_best_epoch_that_could_not_be_written_is_written_on_resuming(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(text, tmp_path / "run", epochs=2, noise="none")

    def disk_is_full(path: Path, payload: dict[str, Any], keep: Path | None = None) -> None:
        if path.name == "best.ckpt" and payload["epoch"] == 3:
            raise OSError(errno.ENOSPC, "full", str(path))
        save_checkpoint(path, payload, keep)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", disk_is_full)
        with pytest.raises(OSError):
            train(config)
    model = train(replace(config, resume=True))["models"]["deterministic"]
    assert model["best_epoch"] == 2
    assert load_checkpoint(tmp_path / "run" / "best.ckpt")["epoch"] == 3
    assert math.log(model["final"]["mean_path"]["valid"]) == pytest.approx(
        model["history"][1]["valid_nats"], abs=1e-6
    )


def test_an_option_that_trained_nothing_is_no_change(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = TrainConfig.load(run / "config.yaml")
    rate = config.learning_rate / 2
    train(replace(config, resume=True, learning_rate=rate, out=str(run)))
    models = json.loads((run / "record.json").read_text())["models"]
    assert not any(model.get("changes") for model in models.values())


def test_more_epochs_go_on_where_a_run_ended(text: Path, tmp_path: Path) -> None:
    train(small(text, tmp_path / "run", epochs=1))
    train(small(text, tmp_path / "run", epochs=2, resume=True))
    train(small(text, tmp_path / "straight", epochs=2))
    first, second = (outcome(tmp_path / name)[0] for name in ("run", "straight"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resuming_nothing_starts_it(text: Path, tmp_path: Path) -> None:
    """A scheduler's script need not tell the first start from the others."""
    train(small(text, tmp_path / "run", resume=True, epochs=1, noise="none"))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_half_written_checkpoint_is_never_read(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    before = outcome(tmp_path / "run")
    half_written(tmp_path / "run" / "last.ckpt")
    train(replace(config, resume=True))
    assert outcome(tmp_path / "run")[2] == before[2]
