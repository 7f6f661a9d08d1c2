"""A worker holds the lock on its run, tells its progress in a file, and outlives its parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.experiments import process, runner, worker
from noisin_pyro.experiments.process import Worker
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.store import Run, planned
from noisin_pyro.training.lease import Lease, holding
from tests.experiments.fakes import fake


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of a few seconds."""
    text = tmp_path / "words.txt"
    text.write_text("a b c d e\nf g h\n" * 2000)
    options = Options(corpus=str(text), epochs=3, grid=1, seeds=1, device="cpu")
    recipe = next(r for r in recipes("table2", options) if r.row == "1-tanh-none")
    return planned(recipe, options, tmp_path / "results")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def is_locked(folder: Path) -> bool:
    lease = Lease(folder / worker.LOCK)
    if not lease.take():
        return True
    lease.give_back()
    return False


def test_a_run_that_another_worker_has_is_no_failure(run: Run, folder: Path) -> None:
    with holding(folder / worker.LOCK):
        other = Worker(run, folder, jobs=1).start()
        other.join()
    assert other.process.returncode == worker.BUSY
    assert not other.failed and not run.finished


@pytest.mark.parametrize("folder_is_there", [True, False])
def test_a_run_that_another_worker_has_just_finished(
    run: Run, folder: Path, folder_is_there: bool
) -> None:
    own = Worker(run, folder, jobs=1)
    fake(run, valid=140, test=130)
    before = run.path.read_bytes()
    if not folder_is_there:
        shutil.rmtree(folder)
    own.start().join()
    assert own.process.returncode == worker.BUSY and not own.failed
    assert run.path.read_bytes() == before and not folder.exists()
    assert own.last_words() == f"exit code {worker.BUSY}, {own.log}"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no option for it")
def test_files_where_one_is_are_not_imported(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As ``python -m`` does, which prefers them to the standard library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    own = Worker(run, folder, jobs=1)
    fake(run, valid=140, test=130)
    own.start().join()
    assert own.process.returncode == worker.BUSY


def test_a_folder_is_prepared_under_the_lock(run: Run, folder: Path) -> None:
    """Otherwise the worker that has the run could finish it and remove the folder meanwhile."""
    held = []

    def prepared(*arguments: Any) -> Worker:
        held.append(is_locked(folder))
        return Worker(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "Worker", prepared)
        own = runner._prepare(run, folder, 1)
        assert own is not None and held == [True]
        patched.setattr(runner, "Worker", lambda *_: (folder / "gone").read_bytes())
        assert runner._prepare(run, folder, 1) is None  # the folder vanished all the same
    own.start().join()
    assert run.finished and runner._prepare(run, folder, 1) is None and not folder.exists()


@pytest.mark.parametrize(("cores", "jobs", "threads"), [(8, 1, "8"), (8, 3, "2"), (2, 5, "1")])
def test_workers_share_the_cores(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int, threads: str
) -> None:
    """Unless the user has said how many threads each is to have."""
    given: list[Any] = []
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("subprocess.Popen", lambda *_, env, **__: given.append(env))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Worker(run, folder, jobs).start()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Worker(run, folder, jobs).start()
    assert [env["OMP_NUM_THREADS"] for env in given] == [threads, "7"]


def test_progress_comes_from_a_file(run: Run, folder: Path) -> None:
    own = Worker(run, folder, jobs=1).start()
    assert (own.stage, own.epochs) == ("starting", 0.0)
    for progress, stage, epochs in (
        ({"epoch": 2, "step": 5, "steps": 20}, "epoch 2, 25 %", 1.25),
        ({"averaging": 16}, "averaging 16 samples", float("inf")),
    ):
        (folder / worker.PROGRESS).write_text(json.dumps(progress))
        assert (own.stage, own.epochs) == (stage, epochs)
    own.process.kill()
    own.join()
    assert own.failed and own.last_words().startswith("ended by signal 9")


def test_a_worker_whose_parent_died_keeps_the_lock_and_finishes(run: Run, folder: Path) -> None:
    (folder / "job.json").write_text(json.dumps(process._job(run)))
    command = [sys.executable, "-m", "noisin_pyro.experiments.worker", str(folder / "job.json")]
    script = f"""
import subprocess, time
subprocess.Popen({command}, start_new_session=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / worker.PROGRESS).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert is_locked(folder) and not run.finished
    while not run.finished and time.monotonic() < deadline:
        time.sleep(0.1)
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.finished and not folder.exists()


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(run: Run, folder: Path) -> None:
    """Python's own words named the class of the exception, and no remedy."""
    run.path.parent.parent.mkdir(parents=True)
    run.path.parent.write_text("in the way")
    own = Worker(run, folder, jobs=1).start()
    own.process.wait(120)
    expected = f"{run.path.parent} cannot be used (File exists); give another path (exit code 1, "
    assert own.failed and own.last_words().startswith(expected)
