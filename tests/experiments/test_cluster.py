"""Runs as jobs: submitit's local executor, whose processes are killed, and what Slurm is told."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import SoftFileLease

from noisin_pyro.experiments.cluster import Cluster, RunJob
from tests.cli import calls
from tests.experiments.test_reproduce import records, start, text, undisturbed

__all__ = ["text", "undisturbed"]  # fixtures

JOBS = "--cluster=local"


@pytest.fixture
def again(text: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the reproduction; kills what is left of it at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        started.append(start(text, tmp_path, JOBS))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def workers(folder: Path) -> list[int]:
    """The processes that have a run."""
    found = [SoftFileLease(path).pid for path in (folder / "work").rglob("lock")]
    return [pid for pid in found if pid is not None]


def until(holds: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved(folder: Path) -> bool:
    """Whether a run has its first checkpoint and is still being carried out."""
    return bool(list((folder / "work").rglob("last.ckpt")) and workers(folder))


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "work").rglob("*") if path.is_file()]


def test_jobs_write_the_records_that_processes_do(
    undisturbed: Path, tmp_path: Path, again: Callable[[], subprocess.Popen[str]]
) -> None:
    """One of them is told to end, as a scheduler does before its time is up, and is requeued."""
    process = again()
    until(lambda: saved(tmp_path))
    os.kill(workers(tmp_path)[0], signal.SIGUSR2)
    until(lambda: "Requeued job" in "".join(
        path.read_text() for path in (tmp_path / "work" / "cluster").rglob("*.out")
    ) or process.poll() is not None)  # fmt: skip
    assert process.poll() is None, "its log goes when its run has a record"
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "1 layer, tanh" in out and "2/2 runs" in err
    assert records(tmp_path) == records(undisturbed)
    assert left(tmp_path) == []


@pytest.mark.slow
def test_a_job_that_is_killed_is_told_and_its_run_goes_on(
    undisturbed: Path, tmp_path: Path, again: Callable[[], subprocess.Popen[str]]
) -> None:
    process = again()
    until(lambda: saved(tmp_path))
    os.kill(workers(tmp_path)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and " was killed (" in err and "Traceback" not in err
    (log,) = re.findall(r" was killed \((.*)\)", err)
    assert Path(log).parent.parent.name == "1-tanh-noisin" and Path(log).exists()
    process = again()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert records(tmp_path) == records(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_the_parent_is_killed_and_two_others_go_on(
    undisturbed: Path,
    tmp_path: Path,
    again: Callable[[], subprocess.Popen[str]],
    how: signal.Signals,
) -> None:
    process = again()
    until(lambda: saved(tmp_path))
    process.send_signal(how)
    if how == signal.SIGINT:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130 and "nothing is lost" in err
        assert workers(tmp_path) == [], "every job has saved and ended"
    for other in [again(), again()]:
        _, err = other.communicate(timeout=300)
        assert other.returncode == 0, err
    assert records(tmp_path) == records(undisturbed)
    assert left(tmp_path) == [], "also the logs of jobs whose parent was killed"


@pytest.mark.slow
def test_forty_kills(
    undisturbed: Path, tmp_path: Path, again: Callable[[], subprocess.Popen[str]]
) -> None:
    """Of workers and parents, at random moments: no record is lost, and none differs."""
    draw, process = random.Random(0), again()
    for _ in range(40):
        time.sleep(draw.uniform(0.0, 6.0))
        chosen = draw.choice([process.pid, *workers(tmp_path)])
        with contextlib.suppress(ProcessLookupError):  # a worker that has just ended
            os.kill(chosen, signal.SIGKILL)
        if process.poll() is not None or chosen == process.pid:
            process.communicate()
            process = again()
    process.communicate(timeout=600)
    process = again()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert records(tmp_path) == records(undisturbed)


def scripts(folder: Path) -> Path:
    """A folder with a Slurm that takes a job and forgets it."""
    folder.mkdir()
    for name, line in (("srun", ""), ("sbatch", 'cp "$1" "$0".job; echo "Submitted batch job 7"')):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def test_what_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = scripts(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    cluster = Cluster("slurm", tmp_path / "jobs", partition="long", hours=1.5, cpus=3, gpus=1)
    assert cluster.executor().submit(RunJob("job.json", 3)).job_id == "7"
    script = (place / "sbatch.job").read_text()
    for line in ("partition=long", "time=90", "cpus-per-task=3", "gpus-per-node=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --signal=USR2@90" in script


def refusal(text: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    return calls.refusal(capsys, "reproduce", "table2", f"--corpus={text}", *more)


def test_refusals(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert "cluster slurm is not here" in refusal(text, capsys, "--cluster=slurm")
    assert "hours must lie between 0 and 10,000, got 0" in refusal(text, capsys, JOBS, "--hours=0")
    assert "cpus must be at least 1" in refusal(text, capsys, JOBS, "--cpus=0")
    assert "gpus must be at least 0" in refusal(text, capsys, JOBS, "--gpus=-1")
    assert "gpus is of the jobs of a cluster, got 1 without" in refusal(text, capsys, "--gpus=1")
    assert "unknown cluster 'pbs'" in refusal(text, capsys, "--cluster=pbs")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert 'run pip install "noisin-pyro[cluster]"' in refusal(text, capsys, JOBS)
    assert not (tmp_path / "results").exists()
