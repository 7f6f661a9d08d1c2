"""Two processes that meet over loopback, as those of two hosts do, train as two of one host."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noisin_pyro.cli import main
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import make_fabric
from noisin_pyro.training.hosts import in_first_folder
from tests.training.runs import random_words

SIZES = ["--embedding_size=8", "--hidden_size=8", "--batch_size=8", "--unroll=7", "--device=cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_words(tmp_path_factory.mktemp("text") / "words.txt")


def launch(text: Path, out: Path, *more: str) -> list[subprocess.Popen[str]]:
    """What torchrun starts on two hosts with a device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        variables = {
            "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1,
            "GROUP_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        options = ["--nodes=2", f"--corpus={text}", f"--out={out}", *SIZES, *more]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "noisin_pyro", "train", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            )
        )
    return processes


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        printed = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, printed)]


def weights(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.rglob("model.safetensors"))]


@pytest.mark.slow
def test_two_hosts_train_as_one_with_two_devices(text: Path, tmp_path: Path) -> None:
    """Stopped in between by the signal that a scheduler sends to every host."""
    script = tmp_path / "one.py"  # processes are spawned from a file
    arguments = [f"--corpus={text}", f"--out={tmp_path}/one", "--devices=2", "--epochs=2", *SIZES]
    script.write_text(
        f"from noisin_pyro.cli import main\nif __name__ == '__main__':\n"
        f"    raise SystemExit(main(['train', *{arguments}]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    cut = launch(text, tmp_path / "two", "--epochs=2", "--checkpoint_seconds=0")
    deadline = time.monotonic() + 200
    while not (tmp_path / "two" / "last.ckpt").exists():
        assert all(p.poll() is None for p in cut) and time.monotonic() < deadline
        time.sleep(0.02)
    for process in cut:
        process.send_signal(signal.SIGTERM)
    for code, _, err in ended(cut):
        assert code == 143 and "go on with noisin train" in err.splitlines()[-1], err
    first, second = ended(launch(text, tmp_path / "two", "--epochs=2", "--resume=true"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "test, mean path" in first[1] and second[1] == ""
    assert weights(tmp_path / "two") == weights(tmp_path / "one") != []
    # What the first one refuses, all refuse.
    for code, _, err in ended(launch(text, tmp_path / "two", "--epochs=2", "--resume=true",
                                     "--seed=5")):  # fmt: skip
        assert code == 2 and "seed" in err.splitlines()[-1], err


def test_nobody_has_started_the_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Path
) -> None:
    asked = ["train", f"--corpus={text}", f"--out={tmp_path}/run", "--nodes=2", *SIZES]
    assert main(asked) == 2
    assert "needs torchrun or srun to start a process for each device" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert main(asked) == 2
    assert "are 2 processes, got 3; give srun as many" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_for_the_first_process_is_told_to_all() -> None:
    """The others waited for it."""
    told: list[Any] = []

    def broadcast(refusal: ValueError) -> ValueError:
        told.append(str(refusal))
        raise refusal

    @contextmanager
    def folder() -> Iterator[None]:
        raise OSError(errno.ENOSPC, "No space left on device", "run/config.yaml")
        yield

    fabric = SimpleNamespace(global_rank=0, broadcast=broadcast)
    with pytest.raises(ValueError, match="config.yaml cannot be written, the disk is full"):
        in_first_folder(fabric, folder(), lambda fabric: None)
    assert len(told) == 1


def test_a_job_of_slurm_with_many_tasks_may_train_alone_in_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"NTASKS": "8", "PROCID": "3", "JOB_NAME": "x", "LOCALID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fabric = make_fabric(TrainConfig(device="cpu"))
    assert (fabric.global_rank, fabric.world_size) == (0, 1)
