"""A training that is killed, or whose disk is full, at each of its file operations."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from noisin_pyro.cli import main
from tests.training.disasters import Disaster, Operation, fill, in_child, is_full, kill, nothing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

#: What a run has before its second checkpoint only where it was disturbed.
PREVIOUS = {Path("previous.ckpt"), Path("deterministic/previous.ckpt")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat\na dog ran\n" * 60)
    assert trains(path, path.parent / "run", epochs=1) == 0  # imports what forked ones need
    return path


def trains(text: Path, out: Path, epochs: int = 2) -> int:
    options = {
        "corpus": text, "out": out, "hidden_size": 5, "embedding_size": 4, "epochs": epochs,
        "batch_size": 4, "unroll": 30, "cell": "rnn_tanh", "checkpoint_seconds": 0,
        "resume": "true", "quiet": "true",
    }  # fmt: skip
    return main(["train", *(f"--{name}={value}" for name, value in options.items())])


def results(out: Path) -> dict[Path, bytes]:
    """What must be the same however often a run was disturbed."""
    names = ("model.safetensors", "vocabulary.txt", "config.yaml", "config.json")
    return {
        path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.name in names
    }


def replay(text: Path, out: Path, disaster: Callable[[int], Disaster], every: int) -> int:
    """Resumes after each disaster, and compares what is then there with an undisturbed run.

    Returns:
        How many disasters there were.
    """
    work = partial(trains, text, out)
    code, count = in_child(work, out, nothing)
    assert code == 0
    wanted, names = results(out), {path.relative_to(out) for path in out.rglob("*")}
    places = range(1, count + 1, every)
    for place in places:
        shutil.rmtree(out)
        code, _ = in_child(work, out, disaster(place))
        # The last two remove the lock, which a full disk does not prevent.
        assert code in (-signal.SIGKILL, 2) or (disaster is fill and place > count - 2), place
        assert in_child(work, out, nothing)[0] == 0, place
        assert {path.relative_to(out) for path in out.rglob("*")} ^ names <= PREVIOUS, place
        assert results(out) == wanted, place
    return len(places)


@pytest.mark.parametrize("disaster", [kill, pytest.param(fill, marks=pytest.mark.slow)])
def test_some_file_operations(
    text: Path, tmp_path: Path, disaster: Callable[[int], Disaster]
) -> None:
    assert replay(text, tmp_path / "run", disaster, every=41) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("disaster", [kill, fill])
def test_every_file_operation(
    text: Path, tmp_path: Path, disaster: Callable[[int], Disaster]
) -> None:
    assert replay(text, tmp_path / "run", disaster, every=1) > 100


FILES = ("config.yaml", "vocabulary.txt", "last.ckpt", "best.ckpt", "record.json", "metrics.csv",
         "curves.png", "model.safetensors", "deterministic/last.ckpt")  # fmt: skip


def plain(path: str) -> str:
    """A path without the random digits of a temporary file."""
    return re.sub(r"\.[0-9a-f]{32}(?=\.partial$)", "", path)


@pytest.fixture(scope="module")
def begun(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch whose twin is still to be trained."""
    out = tmp_path_factory.mktemp("begun") / "run"
    assert trains(text, out, epochs=1) == 0
    (out / "deterministic" / "last.ckpt").unlink()
    return out


@pytest.mark.parametrize(
    "name",
    [
        name if name.endswith(("last.ckpt", "png")) else pytest.param(name, marks=pytest.mark.slow)
        for name in FILES
    ],
)
def test_a_full_disk_is_one_sentence(
    text: Path, begun: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It names the file, and what is on the disk stays."""
    out = Path(shutil.copytree(begun, tmp_path / "run"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(operation: Operation, half: Callable[[], None]) -> None:
        if (operation.kind, plain(operation.path)) == ("write", f"{out / name}.partial"):
            is_full(operation, half)

    capfd.readouterr()
    work = partial(trains, text, out, epochs=2)
    assert in_child(work, out, full)[0] == 2
    sentence = "the disk is full; what was there stays, make room and go on"
    assert capfd.readouterr().err == f"noisin: {out / name} cannot be written, {sentence}\n"
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert before.keys() <= after.keys() and before.get(out / name) == after.get(out / name)
    assert not list(out.rglob("*.partial"))
    assert in_child(work, out, nothing)[0] == 0


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(text: Path, tmp_path: Path) -> None:
    """Written beside, fsync, the old one renamed, the new one renamed, fsync of the folder."""
    out, log = tmp_path / "run", tmp_path / "operations"

    def tell(operation: Operation, half: Callable[[], None]) -> None:
        with log.open("a") as file:
            file.write(f"{operation.kind} {plain(Path(operation.path).name)}\n")

    assert in_child(partial(trains, text, out), out, tell)[0] == 0
    lines = log.read_text()
    steps = (
        *("open last.ckpt.partial", "(write last.ckpt.partial\n)+fsync ", "rename last.ckpt"),
        *("rename last.ckpt.partial", "fsync ", "remove last.ckpt.partial"),
    )
    assert len(re.findall("\n".join(steps), lines)) > 5
    names = re.findall(r"rename (.*)\.partial\nfsync \n", lines)
    assert len(names) == lines.count(".partial\nfsync \nrename")
    assert set(names) >= {Path(name).name for name in FILES}
