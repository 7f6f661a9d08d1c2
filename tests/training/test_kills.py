"""A training that is killed, or whose disk is full, at each of its file operations."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.fsync"}  # besides an open that writes


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat\na dog ran\n" * 60)
    return path


def config(text: Path, out: Path) -> TrainConfig:
    return TrainConfig(
        corpus=str(text), hidden_size=5, embedding_size=4, epochs=2, batch_size=4, unroll=30,
        cell="rnn_tanh", checkpoint_seconds=0.0, out=str(out), resume=True, quiet=True,
    )  # fmt: skip


def in_child(text: Path, out: Path, act: Callable[[int], None]) -> int:
    """Trains in a forked process that calls ``act`` before each file operation below ``out``.

    Returns:
        The process's exit code, or minus the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and (
                any(letter in str(arguments[1]) for letter in "wax") or arguments[2] & os.O_CREAT
            )
            if (event in CHANGING or writes) and str(out) in str(arguments[0]):
                count += 1
                act(count)

        code = 1
        try:
            torch.set_num_threads(1)  # the threads that torch's loops would wait for are not forked
            sys.addaudithook(hook)
            train(config(text, out))
            code = 0
        except (OSError, ValueError):
            code = 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill(at: int) -> Callable[[int], None]:
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == at else None


def fill(at: int) -> Callable[[int], None]:
    def act(count: int) -> None:
        if count >= at:
            raise OSError(errno.ENOSPC, "No space left on device")

    return act


def replay(
    text: Path, folder: Path, disaster: Callable[[int], Callable[[int], None]], every: int
) -> int:
    """Resumes after each disaster, and compares what is then there with an undisturbed run."""
    assert in_child(text, folder / "whole", lambda count: None) == 0
    names = {path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*")}
    weights = [(folder / "whole" / path).read_bytes() for path in sorted(names) if is_result(path)]
    at, out = 1, folder / "run"
    while True:
        shutil.rmtree(out, ignore_errors=True)
        code = in_child(text, out, disaster(at))
        if code == 0:
            return at
        assert code in (-signal.SIGKILL, 2)
        assert in_child(text, out, lambda count: None) == 0, at
        there = {path.relative_to(out) for path in out.rglob("*")}
        assert there - {Path("previous.ckpt"), Path("deterministic/previous.ckpt")} <= names, at
        assert names - {Path("previous.ckpt"), Path("deterministic/previous.ckpt")} <= there, at
        assert weights == [(out / path).read_bytes() for path in sorted(names) if is_result(path)]
        at += every


def is_result(path: Path) -> bool:
    return path.name in ("model.safetensors", "vocabulary.txt", "config.yaml", "config.json")


@pytest.mark.parametrize("disaster", [kill, fill])
def test_some_file_operations(text: Path, tmp_path: Path, disaster: Any) -> None:
    assert replay(text, tmp_path, disaster, every=40) > 60


@pytest.mark.slow
@pytest.mark.parametrize("disaster", [kill, fill])
def test_every_file_operation(text: Path, tmp_path: Path, disaster: Any) -> None:
    assert replay(text, tmp_path, disaster, every=1) > 60
