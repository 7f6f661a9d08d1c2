"""``noisin reproduce`` that is killed, or whose disk is full, at each of its file operations."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noisin_pyro.cli import main
from noisin_pyro.experiments import job, process, reproduce, runner, worker
from noisin_pyro.experiments.recipe import Options, Recipe, recipes
from tests.training.disasters import Disaster, fill, in_child, kill, nothing

assert job  # a forked worker imports it, and torch with it, in no time

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TINY = {"embedding_size": 4, "hidden_size": 5, "batch_size": 4, "unroll": 30, "epochs": 2}


class Forked:
    """A worker that is forked, so that its file operations are counted with its parent's."""

    def __init__(self, command: list[str], stdout: Any, **options: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            code = worker.main(command[-1])
        except Exception as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> None:
        while self.poll() is None:
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat\na dog ran\n" * 60)
    tiny = ["--hidden_size=4", "--embedding_size=4", "--epochs=1", "--quiet=true"]
    # It imports what forked ones need.
    assert main(["train", f"--corpus={path}", f"--out={path.parent / 'run'}", *tiny]) == 0
    return path


def reproduces(text: Path, folder: Path) -> int:
    """``noisin reproduce`` of two rows with a run each; its exit code."""

    def two_rows(experiment: str, options: Options) -> list[Recipe]:
        rows = [
            r for r in recipes(experiment, options) if r.row in ("1-tanh-noisin", "1-tanh-none")
        ]
        return [replace(r, config={**r.config, **TINY}, samples=(2,)) for r in rows]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reproduce, "recipes", two_rows)
        names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
        patched.setattr(process, "subprocess", SimpleNamespace(Popen=Forked, **names))
        patched.setattr(runner, "POLL", 0.01)
        patched.setattr(runner, "RETRY", 0.05)
        patched.setattr(worker, "PROGRESS_EVERY", 0.0)
        options = [f"--corpus={text}", "--grid=1", "--seeds=1", "--quiet=true", "--device=cpu"]
        folders = [f"--results={folder / 'results'}", f"--work={folder / 'work'}"]
        try:
            return main(["reproduce", "table2", *options, *folders])
        except SystemExit as stop:  # some run failed
            return int(str(stop.code))


def results(folder: Path) -> dict[str, Any]:
    """The records without what depends on the clock."""
    found = {}
    for path in (folder / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        del record["timing"], record["wall_seconds"]
        found[path.name] = record
    return found


def replay(text: Path, folder: Path, disaster: Callable[[int], Disaster], every: int) -> int:
    """Starts again after each disaster, and compares the records with undisturbed ones.

    Returns:
        How many disasters there were.
    """
    work = partial(reproduces, text, folder)
    code, count = in_child(work, folder, nothing)
    assert code == 0
    wanted, names = results(folder), files(folder)
    assert len(wanted) == 2 and not [name for name in names if name.parts[0] == "work"]
    places = range(1, count + 1, every)
    for place in places:
        shutil.rmtree(folder)
        # If only a worker is killed, its parent tells of it and goes on with the other run. An
        # operation of a killed parent's worker may have another number.
        assert in_child(work, folder, disaster(place))[0] in (-signal.SIGKILL, 1, 2, 0), place
        assert in_child(work, folder, nothing)[0] == 0, place
        assert (results(folder), files(folder)) == (wanted, names), place
    return len(places)


def files(folder: Path) -> set[Path]:
    """All files but parts of tables: several reproductions write these, and remove them later."""
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if name.suffix != ".partial" or ".json." in name.name}


@pytest.mark.parametrize("disaster", [kill, fill])
def test_some_file_operations(
    text: Path, tmp_path: Path, disaster: Callable[[int], Disaster]
) -> None:
    assert replay(text, tmp_path / "run", disaster, every=37) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("disaster", [kill, fill])
def test_every_file_operation(
    text: Path, tmp_path: Path, disaster: Callable[[int], Disaster]
) -> None:
    assert replay(text, tmp_path / "run", disaster, every=1) > 100
