"""One process at a time has a folder, and a folder whose owner is gone can be had."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from noisin_pyro.training import lease
from noisin_pyro.training.lease import BUSY, Held, Lease, holding

BEAT, STALE = 0.1, 1.5

OWNER = """
import sys, time
from pathlib import Path
from noisin_pyro.training import lease
lease.HEARTBEAT, lease.STALE = {beat}, {stale}
with lease.holding(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""

TAKERS = """
import os, sys
from pathlib import Path
from noisin_pyro.training.lease import Lease
folder = Path(sys.argv[1])
mine, turns = Lease(folder / "lock"), 0
while turns < 8:
    if mine.take():
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
        os.unlink(folder / "inside")
        turns += 1
        mine.give_back()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", BEAT)
    monkeypatch.setattr(lease, "STALE", STALE)


def start(script: str, place: Path, stale: float = STALE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script.format(beat=BEAT, stale=stale), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(place: Path, stale: float = STALE) -> subprocess.Popen[str]:
    """A process that has the lease."""
    process = start(OWNER, place, stale)
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    return process


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    return started(tmp_path / "lock")


def end(process: subprocess.Popen[str]) -> str:
    process.kill()
    return process.communicate()[1]


def test_never_two_at_once(tmp_path: Path) -> None:
    """A test can only find an overlap by luck: thirty-two turns of four processes."""
    takers = [start(TAKERS, tmp_path) for _ in range(4)]
    for taker in takers:
        _, err = taker.communicate(timeout=120)
        assert taker.returncode == 0, err
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_alive_is_never_taken(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    patient, until = Lease(tmp_path / "lock"), time.monotonic() + 4 * STALE
    while time.monotonic() < until:
        assert not patient.take()
    with pytest.raises(Held), holding(tmp_path / "lock"):
        pass
    assert owner.poll() is None
    end(owner)


def test_one_that_is_silent_is_taken_over_and_then_ends(
    tmp_path: Path, owner: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that is stopped is to others what one on a machine that is gone would be."""
    owner.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with holding(tmp_path / "lock"):
        assert time.monotonic() - began >= STALE
        assert f"the process that has {tmp_path} is still alive" in capsys.readouterr().err
        owner.send_signal(signal.SIGCONT)
        _, err = owner.communicate(timeout=60)
        assert (owner.returncode, err.count("\n")) == (BUSY, 1), err
        assert f"noisin: another process took over {tmp_path}" in err
    assert not (tmp_path / "lock").exists()


def test_the_owner_of_one_that_was_removed_ends(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    (tmp_path / "lock").unlink()
    _, err = owner.communicate(timeout=60)
    assert (owner.returncode, err.count("\n")) == (BUSY, 1), err
    assert f"noisin: {tmp_path / 'lock'} was removed" in err


def test_one_of_a_process_that_was_killed_here_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE", 3600.0)
    end(started(tmp_path / "lock", stale=3600.0))
    assert (tmp_path / "lock").exists()
    with holding(tmp_path / "lock"):
        assert not Lease(tmp_path / "lock").take()


@pytest.mark.parametrize("content", ["", "filelock/2\npid=12"])
def test_one_of_a_process_that_was_killed_before_it_wrote_its_name(
    tmp_path: Path, content: str
) -> None:
    """An empty one, as a loss of power leaves it, was waited for for ever."""
    (tmp_path / "lock").write_text(content)
    began = time.monotonic()
    with holding(tmp_path / "lock"):
        assert time.monotonic() - began >= STALE
    assert list(tmp_path.iterdir()) == []


def test_one_whose_owner_is_about_to_write_its_name_is_left_alone(tmp_path: Path) -> None:
    """Also if others have begun to take it over."""
    others = Lease(tmp_path / "other")
    assert others.take()
    name = (tmp_path / "other").read_bytes()
    with (tmp_path / "lock").open("wb", buffering=0) as file:
        patient = Lease(tmp_path / "lock")
        while not (tmp_path / "lock").stat().st_size:
            assert not patient.take()
            time.sleep(0.01)
        file.write(name)
        assert (tmp_path / "lock").read_bytes() == name
        until = time.monotonic() + STALE / 2
        while time.monotonic() < until:
            assert not patient.take()
    others.give_back()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), holding(tmp_path / "file" / "lock"):
        pass
