"""Two processes, each with half of the streams, train as one process with all of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.testing import assert_close

from noisin_pyro.text.batching import streams, window_count
from noisin_pyro.training.checkpoint import Damaged, load_checkpoint
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.interrupt import Interrupted
from noisin_pyro.training.run import _run_in_process, train
from tests.training.runs import random_words

BATCH, UNROLL = 8, 7


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class Replayed(torch.distributions.Normal):
    """The same normal draws however many processes share them: each takes its streams' columns."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.draws = torch.zeros((), dtype=torch.int64)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        steps, share, units = sample_shape
        if share not in (BATCH, BATCH // 2):  # an evaluation, which every process does whole
            return super().sample(sample_shape)
        self.draws += 1
        generator = torch.Generator().manual_seed(int(self.draws))
        noise = torch.randn(steps, BATCH, units, generator=generator)
        first = rank() * share
        return noise[:, first : first + share]


class Written(torch.distributions.Laplace):
    """Leaves its first draw in a folder, a file for each process."""

    def __init__(self, folder: str) -> None:
        super().__init__(0.0, 1.0)
        self.folder = folder

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        draw = super().sample(sample_shape)
        path = Path(self.folder) / f"rank{rank()}.pt"
        if not path.exists():
            torch.save(draw, path)
        return draw


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_words(tmp_path_factory.mktemp("text") / "words.txt")


def run(text: Path, out: Path, devices: int, base: str, **options: Any) -> dict[str, Any]:
    """One epoch of SGD, whose steps are the gradients; what ``last.ckpt`` then holds."""
    config = TrainConfig(
        corpus=str(text),
        noise={"class_path": f"{__name__}.{base}", "init_args": options},
        trust_code=True,
        spread=0.5,
        learn_spread=True,
        embedding_size=10,
        hidden_size=12,
        layers=2,
        optimizer="sgd",
        learning_rate=1.0,
        clip_norm=0.3,  # below the norm of most steps, so that clipping is seen to be global
        epochs=1,
        batch_size=BATCH,
        unroll=UNROLL,
        device="cpu",
        devices=devices,
        out=str(out),
    )
    record = train(config)
    saved = load_checkpoint(out / "last.ckpt")
    assert record["models"]["noisin"]["timing"]["tokens_per_second"] > 0
    return {"model": saved["model"], "record": record, "processes": saved["processes"]}


def test_two_processes_train_as_one(text: Path, tmp_path: Path) -> None:
    """Same global batch and same noise: the same weights and γ after more than 20 steps.

    They differ by the order of float32 sums alone, some 1e-6; one wrong column of noise moves
    them by 1e-2.
    """
    steps = window_count(streams(torch.zeros(1200, dtype=torch.int64), BATCH), UNROLL)
    assert steps > 20
    one = run(text, tmp_path / "one", 1, "Replayed")
    two = run(text, tmp_path / "two", 2, "Replayed")
    assert one["model"].keys() == two["model"].keys()
    for name, weight in one["model"].items():
        assert_close(two["model"][name], weight, atol=2e-5, rtol=1e-4, msg=name)
    history = [result["record"]["models"]["noisin"]["history"][0] for result in (one, two)]
    for figure in ("train_nats", "valid_nats"):
        assert history[1][figure] == pytest.approx(history[0][figure], rel=1e-5)
    assert len(two["processes"]) == 2


def test_each_process_draws_its_own_noise(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path / "run", 2, "Written", folder=str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    assert first.shape == second.shape == (UNROLL, BATCH // 2, 12)
    assert not (first == second).any()


def test_two_processes_resume_within_an_epoch_bit_for_bit(text: Path, tmp_path: Path) -> None:
    """Each goes on with its own state and random numbers, which differ from the other's."""
    out, again = tmp_path / "run", tmp_path / "again"
    config = TrainConfig(
        corpus=str(text), noise="none", dropout=0.3, embedding_size=6, hidden_size=5, layers=2,
        epochs=1, batch_size=BATCH, unroll=4, device="cpu", devices=2, checkpoint_seconds=0.0,
        quiet=True, out=str(out),
    )  # fmt: skip
    train(config)
    shutil.copytree(out, again)
    for name in ("best.ckpt", "model.safetensors", "record.json"):
        (again / name).unlink()
    (again / "previous.ckpt").replace(again / "last.ckpt")
    before = load_checkpoint(again / "last.ckpt")
    assert before["epoch"] == 1 and before["step"] > 0
    first, second = before["processes"]
    assert not torch.equal(first["state"][0], second["state"][0])
    assert not torch.equal(first["rng"][0], second["rng"][0])
    train(replace(config, out=str(again), resume=True))
    ends = [load_checkpoint(folder / "last.ckpt") for folder in (out, again)]
    for name, weight in ends[0]["model"].items():
        assert torch.equal(weight, ends[1]["model"][name]), name
    assert ends[0]["best"] == ends[1]["best"]


def start(text: Path, out: Path, epochs: int, checkpoint_seconds: float) -> subprocess.Popen[str]:
    """Two processes in a session of their own, so that Ctrl-C can be sent to all of them."""
    options = {
        "corpus": text, "out": out, "embedding_size": 8, "hidden_size": 8, "batch_size": BATCH,
        "unroll": 1, "epochs": epochs, "devices": 2, "device": "cpu",
        "checkpoint_seconds": checkpoint_seconds,
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    code = f"""
from noisin_pyro import cli

if __name__ == "__main__":
    raise SystemExit(cli.main(["train", *{arguments}]))
"""
    script = out.with_suffix(".py")
    script.write_text(code, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, stderr = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stderr


@pytest.mark.slow
def test_two_processes_save_at_the_same_step(text: Path, tmp_path: Path) -> None:
    """Each has its own clock; when they disagree, one would wait for the other for good."""
    code, stderr = end(start(text, tmp_path / "run", 2, checkpoint_seconds=0.01))
    assert code == 0, stderr
    assert (tmp_path / "run" / "deterministic" / "model.safetensors").exists()


@pytest.fixture
def running(text: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training of two processes that is in its second epoch or a later one."""
    process = start(text, tmp_path / "run", 1000, checkpoint_seconds=0.05)
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "run" / "record.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def midway(run: Path) -> tuple[int, int]:
    """Where the latest checkpoint stands, once that is within an epoch; a later one differs."""
    deadline = time.monotonic() + 100
    while True:
        with suppress(Damaged):  # it is missing while it is becoming the previous one
            saved = load_checkpoint(run / "last.ckpt")
            if saved["step"]:
                return saved["epoch"], saved["step"]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def spawned(pid: int) -> list[int]:
    """The training processes that a process has started, the first one first."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def is_there(pid: int) -> bool:
    """Whether a process runs; not one that has ended and is still listed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_ctrl_c_stops_two_processes_with_one_sentence(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(running.pid, signal.SIGINT)
    code, stderr = end(running)
    assert code == 130, stderr
    assert "Traceback" not in stderr and "go on with" in stderr.splitlines()[-1]
    saved = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert len(saved["processes"]) == 2


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


@pytest.mark.slow
@needs_proc
def test_sigterm_to_the_first_process_alone_saves(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    """As schedulers send it, and ``kill PID``."""
    children = spawned(running.pid)
    before = midway(tmp_path / "run")
    running.terminate()
    code, stderr = end(running)
    assert code == 128 + signal.SIGTERM, stderr
    assert "Traceback" not in stderr and "go on with" in stderr.splitlines()[-1]
    saved = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert (saved["epoch"], saved["step"]) > before
    assert len(children) == 2 and not any(map(is_there, children))


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_the_end_of_one_process_ends_the_other(
    running: subprocess.Popen[str], tmp_path: Path, rank: int
) -> None:
    children = spawned(running.pid)
    assert len(children) == 2
    os.kill(children[rank], signal.SIGKILL)
    code, stderr = end(running)
    told = [line for line in stderr.splitlines() if line.startswith("noisin: ")]
    assert code == 2 and len(told) == 1 and "Traceback" not in stderr, stderr
    assert "a process of the training has ended (process" in told[0]
    assert "terminated with signal SIGKILL); go on with --resume true in" in told[0]
    assert not any(map(is_there, children))


@pytest.mark.slow
@needs_proc
def test_the_processes_of_a_killed_parent_save_and_end(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    children = spawned(running.pid)
    before = midway(tmp_path / "run")
    running.kill()
    running.wait()
    deadline = time.monotonic() + 120
    while any(map(is_there, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    saved = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert (saved["epoch"], saved["step"]) > before


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@needs_proc
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_thread_of_gloo_outlives_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """One that drops a tensor while Python exits aborts the process."""
    before = threads()
    of_gloo = set()

    def run_with_group(fabric: Any) -> str:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        group = torch.distributed.group.WORLD  # as the model's wrapper does
        torch.distributed.all_reduce(torch.ones(3), group=group)
        of_gloo.update(threads() - before)
        assert of_gloo
        if interrupted:
            raise Interrupted(signal.SIGTERM)
        return "record"

    monkeypatch.setattr("noisin_pyro.training.run._run", run_with_group)
    nothing: Any = None
    outcome: Any = _run_in_process(nothing)
    assert isinstance(outcome, Interrupted) if interrupted else outcome == "record"
    assert not torch.distributed.is_initialized() and not of_gloo & threads()


def test_threads_of_gloo_may_still_have_tensors_to_drop(tmp_path: Path) -> None:
    """With torch 2.6 the end of the group waited for them with the GIL held, and for good."""
    code = f"""
import time
import torch
from noisin_pyro.training.run import _end_process_group

class Slow:
    def __del__(self):
        time.sleep(0.1)

torch.distributed.init_process_group(
    "gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1
)
for _ in range(8):
    tensor = torch.ones(100_000)
    tensor.slow = Slow()  # which goes with the tensor, in a thread of gloo
    torch.distributed.all_reduce(tensor, async_op=True)
    del tensor
_end_process_group()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
