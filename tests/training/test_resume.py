"""Nothing lost, nothing mistaken: what a run may go on from, and what it may not write over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.cli import main
from noisin_pyro.training import loop
from noisin_pyro.training.checkpoint import Damaged, load_checkpoint, save_checkpoint
from noisin_pyro.training.config import LOCK, TrainConfig
from noisin_pyro.training.interrupt import Interrupted, interrupting
from noisin_pyro.training.lease import holding
from noisin_pyro.training.out import FILES
from noisin_pyro.training.random_state import random_state, set_random_state
from noisin_pyro.training.run import train
from tests.training.disasters import half_written


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat on the mat\na dog ran\n" * 200)
    return path


def tiny(text: Path, out: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        corpus=str(text), embedding_size=4, hidden_size=5, epochs=2, batch_size=4, unroll=9,
        noise="none", cell="rnn_tanh", out=str(out),
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints at every step, so that there is a previous one."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(text, out, checkpoint_seconds=0.0))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, which is a run of its own."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resumed(text: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return train(tiny(text, run, resume=True, **changes))


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


# A run's folder


@pytest.mark.parametrize("name", ["vocabulary.txt", "record.json", "curves.png", "metrics.csv"])
def test_a_file_that_a_kill_left_out_is_written(text: Path, run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    (run / name).unlink()
    half_written(run / name)
    resumed(text, run)
    assert not list(run.glob("*.partial"))
    if name == "vocabulary.txt":
        assert (run / name).read_bytes() == whole
    assert (run / name).exists()


@pytest.mark.parametrize("name", [*FILES[1:], "deterministic/best.ckpt"])
def test_the_files_of_others_are_not_written_over(text: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"holds a {name} that is of no run"):
            train(tiny(text, out, resume=resume))
    assert [path for path in out.rglob("*") if path.is_file()] == [out / name]
    assert (out / name).read_text() == "mine"


def test_a_moved_run_goes_on_where_it_lies(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    train(tiny(Path(text.name), tmp_path / "first", epochs=1))
    before = weights(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "second/config.yaml", "--resume=true", "--epochs=2"]) == 0
    assert weights(tmp_path / "first") == before != weights(tmp_path / "second")


def test_a_moved_run_finds_its_data_set(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``hf:`` with the path of a folder from where the run was started."""
    pytest.importorskip("datasets", reason="needs the extra hf")
    (tmp_path / "words").mkdir()
    shutil.copy(text, tmp_path / "words" / "train.txt")
    monkeypatch.chdir(tmp_path)
    train(replace(tiny(text, tmp_path / "run", epochs=1), corpus="hf:words"))
    # Read from elsewhere, a relative path may be found in the cache of the package datasets.
    corpus = TrainConfig.load(tmp_path / "run" / "config.yaml").corpus
    assert corpus == f"hf:{tmp_path / 'words'}"
    monkeypatch.chdir("/")
    assert main(["train", f"--config={tmp_path}/run/config.yaml", "--resume", "--epochs=2"]) == 0


def test_one_training_at_a_time(text: Path, run: Path) -> None:
    before = weights(run)
    with (
        holding(run / LOCK),
        pytest.raises(ValueError, match="another training is running in"),
    ):
        resumed(text, run, epochs=9)
    assert weights(run) == before


@pytest.mark.parametrize("name", ["~", "file:x", "a::b", "s3://x", "with space", "ü"])
def test_a_path_is_a_path(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train(tiny(text, Path(name, "x"), epochs=1, tensorboard=True))
    assert (tmp_path / name / "x" / "best.ckpt").exists()
    assert list((tmp_path / name / "x").rglob("events.out.tfevents.*"))
    elsewhere = {path.name for path in tmp_path.iterdir()} - {Path(name).parts[0]}
    assert elsewhere <= {"home"}  # where libraries keep caches, and nothing of the run
    assert not list((tmp_path / "home").rglob("*.ckpt"))
    modes = {p.stat().st_mode for p in (tmp_path / name / "x").iterdir() if p.suffix}
    assert len(modes) == 1


# Checkpoints


def test_the_checkpoint_of_another_run_is_refused(text: Path, run: Path, tmp_path: Path) -> None:
    train(tiny(text, tmp_path / "seed", seed=2))
    noisy = tmp_path / "noisy"
    train(tiny(text, noisy, noise="gaussian"))
    for source, target, sentence in (
        (tmp_path / "seed", run, "of a run with seed 2, not 1"),
        (noisy / "deterministic", noisy, "a checkpoint of deterministic, not of noisin"),
    ):
        for name in ("last.ckpt", "best.ckpt"):
            kept = (target / name).read_bytes()
            shutil.copy(source / name, target / name)
            changes = {"noise": "gaussian"} if target == noisy else {}
            with pytest.raises(ValueError, match=f"{name} is .*{sentence}"):
                resumed(text, target, epochs=3 if name == "last.ckpt" else 2, **changes)
            (target / name).write_bytes(kept)


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda saved: saved.pop(name)


def put(value: Any, *place: Any) -> Callable[[dict[str, Any]], object]:
    def change(saved: Any) -> None:
        for name in place[:-1]:
            saved = saved[name]
        saved[place[-1]] = value

    return change


WEIGHT = "rnn.weight_hh_l0"
DAMAGE = {
    **{f"no {name}": drop(name) for name in ("model", "history", "optimizer", "processes")},
    "its progress cannot be used .step must": put(-3, "step"),
    "its progress cannot be used .step is": put("1", "step"),
    "its progress cannot be used .history has": put([], "history"),
    "its progress cannot be used .nats": put(float("nan"), "nats"),
    "its model cannot be used .rnn.* is NaN": put(torch.full((5, 5), torch.nan), "model", WEIGHT),
    "its model cannot be used .Error.* size mismatch": put(torch.ones(3, 3), "model", WEIGHT),
    "its model cannot be used .*object": put(3, "model"),
    "its optimizer cannot be used .exp_avg": put(torch.ones(2), "optimizer", "state", 0, "exp_avg"),
    "its optimizer cannot be used .*": put({}, "optimizer"),
    "its hidden state cannot be used .it must": put(torch.ones(1), "processes", 0, "state"),
    "its random state cannot be used": put([torch.ones(3)], "processes", 0, "rng"),
    "its config cannot be used": put({"hidden_size": "x"}, "config"),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    text: Path, run: Path, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(run)
    saved = load_checkpoint(run / "last.ckpt")
    DAMAGE[sentence](saved)
    save_checkpoint(run / "last.ckpt", saved)
    resumed(text, run)
    told = [line for line in capsys.readouterr().err.splitlines() if "went on from" in line]
    assert len(told) == 1 and told[0].endswith(f"went on from {run / 'previous.ckpt'}")
    assert weights(run) == before
    save_checkpoint(run / "last.ckpt", saved)
    (run / "previous.ckpt").write_bytes(b"damaged too")
    with pytest.raises(Damaged, match=f"last.ckpt is damaged, (it has )?{sentence}"):
        resumed(text, run)
    assert (run / "last.ckpt").exists() and weights(run) == before


def test_a_checkpoint_that_may_not_be_read_is_no_damage(text: Path, run: Path) -> None:
    (run / "last.ckpt").unlink()
    (run / "last.ckpt").mkdir()  # like a file without permission: it is there, but not for us
    with pytest.raises(OSError, match="Is a directory"):
        resumed(text, run)


# The loss


def test_the_advice_after_a_divergence_can_be_followed(
    text: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    config = tiny(text, tmp_path / "run", optimizer="sgd", learning_rate=1e38, clip_norm=0.0)
    with pytest.raises(FloatingPointError, match="nothing was saved yet, go on with --resume true"):
        train(config)
    config = replace(config, resume=True, checkpoint_seconds=0.0)
    with pytest.raises(FloatingPointError, match="last.ckpt is from before it, go on with"):
        train(config)
    assert not recwarn.list
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FloatingPointError):
        train(replace(config, checkpoint_seconds=60.0))
    train(replace(config, learning_rate=0.1))


def test_a_last_step_that_breaks_the_weights(text: Path, tmp_path: Path) -> None:
    """With a step an epoch no loss of training is NaN; that best.ckpt is missing was told."""
    config = tiny(text, tmp_path / "run", learning_rate=1e39, unroll=1000, epochs=1)
    with pytest.raises(
        FloatingPointError, match="validation loss became nan in epoch 1 at its end"
    ):
        train(config)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    train(replace(config, learning_rate=0.1, resume=True))


@pytest.mark.parametrize("name", ["a$_$b.txt", "中文.txt"])
def test_a_text_of_any_name(text: Path, tmp_path: Path, name: str) -> None:
    """Its name is the title of a picture, where $ begins a formula and a font may lack signs."""
    shutil.copy(text, tmp_path / name)
    train(tiny(tmp_path / name, tmp_path / "run", epochs=1))
    assert (tmp_path / "run" / "curves.png").exists()


def test_another_learning_rate_goes_on_and_is_recorded(text: Path, tmp_path: Path) -> None:
    config = tiny(text, tmp_path / "run", epochs=1)
    train(config)
    record = train(replace(config, epochs=2, learning_rate=0.1, clip_norm=1.0, resume=True))
    model = record["models"]["deterministic"]
    changed = {"clip_norm": (5.0, 1.0), "learning_rate": (0.004, 0.1)}
    assert model["changes"] == [{"epoch": 2, "step": 0, **changed}]
    assert [row["learning_rate"] for row in model["history"]] == [0.004, 0.1]
    with pytest.raises(ValueError, match="has unroll 9, got 8"):
        train(replace(config, unroll=8, resume=True))


def test_the_random_state_of_an_accelerator_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is not CUDA's, too; on a machine without it the CPU's alone is restored."""
    restored: list[torch.Tensor] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    saved = random_state(torch.device("mps"))
    expected = torch.rand(3)
    for device in ("mps", "cpu"):
        set_random_state(torch.device(device), saved)
        assert torch.equal(torch.rand(3), expected)
    assert restored == [torch.tensor([7])]


def test_a_resume_that_is_refused_leaves_config_yaml(text: Path, tmp_path: Path) -> None:
    """Cut off after its first line, it is a configuration still: that of another run."""
    config = tiny(text, tmp_path / "run", epochs=1, noise="gaussian")
    train(config)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    before = {path: path.read_bytes() for path in path.parent.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="last.ckpt is of a run with .*; go on with that, put"):
        train(replace(TrainConfig.load(path), resume=True))
    after = {path: path.read_bytes() for path in path.parent.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.name != LOCK} == {
        path: data for path, data in before.items() if path.name != LOCK
    }


# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_signal_saves(text: Path, tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    config = tiny(text, tmp_path / "run", epochs=1)
    step = loop.Trainer._step

    def signalled(trainer: loop.Trainer, *batch: Any) -> Any:
        if trainer.progress.step == 3:
            os.kill(os.getpid(), number)
        return step(trainer, *batch)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup a SIGHUP is ignored
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Trainer, "_step", signalled)
        try:
            with pytest.raises(Interrupted) as stopped:
                train(config)
        finally:
            signal.signal(number, before)
    assert stopped.value.exit_code == 128 + number
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["step"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_that_is_not_pythons_stays(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``getsignal`` gives None for one, and ``signal`` cannot set it again."""
    set_before, getsignal, changed = signal.signal, signal.getsignal, []

    def foreign(asked: int) -> Any:
        return None if asked == number else getsignal(asked)

    def record(asked: int, handler: Any) -> Any:
        changed.append(asked)
        return set_before(asked, handler)

    monkeypatch.setattr(signal, "getsignal", foreign)
    monkeypatch.setattr(signal, "signal", record)
    with interrupting():
        pass
    assert changed and number not in changed


def test_a_second_ctrl_c_waits_for_the_save(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def twice(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(torch, "save", twice)
    with pytest.raises(Interrupted):
        train(tiny(text, tmp_path / "run", checkpoint_seconds=0.0))
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["step"] >= 1


def test_the_exit_code_of_a_signal_and_a_hint_that_can_be_pasted(
    text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "with space"
    command = [sys.executable, "-m", "noisin_pyro", "train", f"--corpus={text}", f"--out={out}",
               "--epochs=9999", "--patience=0", "--hidden_size=5", "--noise=none"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "record.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert stderr.splitlines()[-1].endswith(f"--config '{out}/config.yaml' --resume true")
    assert "Traceback" not in stderr
    assert json.loads((out / "record.json").read_text())["models"]["deterministic"]["history"]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_short_split_is_refused_before_the_first_step(
    tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    for name in ("train", "valid", "test"):
        lines = 2 if name == split else 200
        (tmp_path / "text" / f"{name}.txt").write_text("a b c\n" * lines)
    sentence = f"the {split} split of text has 8 tokens, it needs at least"
    for command in (["train", "--out"], ["reproduce", "table2", "--rows=1-tanh-none", "--results"]):
        path = tmp_path / command[0]
        more = ["--batch_size=1"] if command[0] == "train" else ["--work", str(path)]
        arguments = [*command, str(path), "--corpus", str(tmp_path / "text"), *more]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop.Trainer, "fit", lambda trainer: pytest.fail("it trains"))
            assert main(arguments) == 2
        assert sentence in capsys.readouterr().err
        assert not path.exists()
