"""``noisin reproduce`` at work: several processes, killed, crashing, diverging."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.experiments.recipe import Options, Recipe, recipes
from noisin_pyro.experiments.runner import run_all
from noisin_pyro.experiments.store import due, planned
from noisin_pyro.training.lease import Lease

EPOCHS = 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov chain of forty words, long enough for an epoch to be interrupted."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw = random.Random(0)
    word, words = 0, []
    for _ in range(20_000):
        word = (3 * word + draw.randrange(4)) % 40
        words.append(f"w{word}" + ("\n" if draw.random() < 0.1 else ""))
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def options(text: Path) -> Options:
    return Options(corpus=str(text), epochs=EPOCHS, grid=2, seeds=1)


def rows(text: Path, *names: str) -> list[Recipe]:
    return [r for r in recipes("table2", options(text)) if r.row in names]


def start(text: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "noisin_pyro", "reproduce", "table2",
               "--corpus", str(text), "--rows", "1-tanh-noisin", "--grid", "2", "--seeds", "1",
               "--epochs", str(EPOCHS), "--jobs", "2", "--device", "cpu",
               "--results", str(folder / "results"), "--work", str(folder / "work"),
               *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a shell starts what runs in the background with Ctrl-C ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def records(folder: Path) -> dict[str, Any]:
    """All records, without what depends on the clock."""
    found = {}
    for path in (folder / "results").rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["finished"]
        for name in ("timing", "wall_seconds"):
            del record[name]
        found[path.relative_to(folder).as_posix()] = record
    return found


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(text, folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2/2 runs" in err and "1 layer, tanh" in out
    assert "table2 0/2 runs" in err and "0/0" not in err  # counted before it is shown
    return folder


def test_a_record_tells_the_run(text: Path, undisturbed: Path) -> None:
    found = records(undisturbed)
    assert {record["point"] for record in found.values()} == {
        "multiplicative-1.0",
        "multiplicative-0.5",
    }
    for record in found.values():
        assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
        assert record["history"][0]["train_nats"] > record["history"][-1]["train_nats"]
        final = record["final"]
        best = record["history"][record["best_epoch"] - 1]["valid_perplexity"]
        assert final["mean_path"]["valid"] == pytest.approx(best, rel=0.01)  # in longer windows
        assert final["averaged"][0]["samples"] == 16
        assert final["averaged"][0]["test"] != final["mean_path"]["test"]
        assert record["versions"]["torch"] and record["hardware"]["threads"] == 1
    assert (undisturbed / "results" / "words.txt" / "table2.md").exists()
    left = [path for path in (undisturbed / "work").rglob("*") if path.is_file()]
    assert not left, "checkpoints and logs go when the record is there"


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_records(
    text: Path, undisturbed: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = start(text, tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "results").rglob("*.json")):  # an epoch is over
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    if how != signal.SIGKILL:  # its workers save and end before it does
        _, err = process.communicate(timeout=120)
        assert process.returncode == 128 + how
        assert err.splitlines()[-1] == "noisin: stopped, nothing is lost; the same command goes on"
        assert "Traceback" not in err
        assert not list((tmp_path / "work").rglob("lock")), "nobody has a run"
        for job in (tmp_path / "work").rglob("job.json"):
            assert (job.parent / "last.ckpt").exists()
    cut = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*.json")]
    assert not all(record["finished"] for record in cut)
    # After SIGKILL the trainings still run for a moment; whoever starts again waits for them.
    again = start(text, tmp_path)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    process.communicate()
    assert records(tmp_path) == records(undisturbed)


def test_a_finished_run_is_not_run_again(text: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "results").rglob("*.json")}
    began = time.monotonic()
    process = start(text, undisturbed)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    after = {path: path.stat().st_mtime_ns for path in (undisturbed / "results").rglob("*.json")}
    assert after == before, f"{time.monotonic() - began:.0f} s"


@pytest.mark.parametrize("works", [("work", "work"), ("work", "other")])
def test_two_at_once_share_the_runs(
    text: Path, undisturbed: Path, tmp_path: Path, works: tuple[str, str]
) -> None:
    for process in [start(text, tmp_path, "--work", str(tmp_path / work)) for work in works]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "Traceback" not in err and "1 layer, tanh" in out
    assert records(tmp_path) == records(undisturbed)
    left = [path for work in works for path in (tmp_path / work).rglob("*")]
    assert not [path for path in (*left, *tmp_path.rglob("*.lock")) if path.is_file()]


@pytest.mark.parametrize("shared", ["work", "results"])
def test_a_run_of_another_process_is_put_aside(text: Path, tmp_path: Path, shared: str) -> None:
    """It takes no job's place, its log is left alone, and its record is waited for.

    The other process has the same folder of checkpoints, or only the same results.
    """
    wanted, results, work = options(text), tmp_path / "results", tmp_path / "work"
    together = rows(text, "1-tanh-none", "1-sigmoid-none")
    held, free = due(together, wanted, results)
    (work / held.place).mkdir(parents=True)
    log = work / held.place / "log.txt"
    log.write_text("another's")
    held.lock.parent.mkdir(parents=True)
    lease = Lease({"work": work / held.place / "lock", "results": held.lock}[shared])
    with ThreadPoolExecutor(1) as pool:
        assert lease.take()
        running = pool.submit(run_all, together, wanted, results=results, work=work, jobs=1)
        deadline = time.monotonic() + 120
        while not free.finished and time.monotonic() < deadline:
            time.sleep(0.1)
        told = free.finished, held.record(), log.read_text(), running.done()
        lease.give_back()
        assert running.result(timeout=120) == []
    assert told == (True, None, "another's", False)
    assert due(together, wanted, results) == []
    assert not list(results.rglob("*.lock"))


def test_a_crash_and_a_divergence_leave_the_others_alone(text: Path, tmp_path: Path) -> None:
    (none,) = rows(text, "1-tanh-none")
    crashes = replace(none, records="test/crashes", name="test/crashes")
    diverges = replace(
        none,
        records="test/diverges",
        name="test/diverges",
        config={
            **none.config,
            "cell": "rnn_relu",
            "optimizer": "sgd",
            "learning_rate": 1e30,
            "clip_norm": 0.0,
        },
    )
    wanted, results, work = options(text), tmp_path / "results", tmp_path / "work"
    (broken,) = planned(crashes, wanted, results)
    (work / broken.place).mkdir(parents=True)
    (work / broken.place / "last.ckpt").write_bytes(b"no checkpoint")
    together = [crashes, diverges, none]
    failures = run_all(together, wanted, results=results, work=work, jobs=2)
    assert [failure.run for failure in failures] == [broken]
    assert "last.ckpt is damaged, its file cannot be used" in failures[0].reason
    assert due(together, wanted, results) == [broken]
    (run,) = planned(diverges, wanted, results)
    record = run.record()
    assert record is not None and record["finished"] and record["final"] is None
    assert "became" in record["diverged"] and "in epoch 1" in record["diverged"]
    # Whoever mends what broke goes on with that run alone.
    (work / broken.place / "last.ckpt").unlink()
    assert run_all(together, wanted, results=results, work=work, jobs=2) == []
    assert due(together, wanted, results) == []
