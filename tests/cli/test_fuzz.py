"""Whatever the options and the bytes of the files that are read: exit code 0 or 2, one sentence.

And no file of the user is changed. Each property is tried a few times, and in the slow tier often.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from noisin_pyro.cli import main
from noisin_pyro.experiments import worker
from noisin_pyro.experiments.process import Worker
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.store import Run, planned
from noisin_pyro.training.config import HINTS, TrainConfig
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.safe_yaml import parse_yaml
from tests.experiments.fakes import fake

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.sampled_from([10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["none", "gaussian", "lstm", "adam", "halve-after:2", "both", "os.system"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
OPTIONS = st.dictionaries(
    st.sampled_from(
        sorted(HINTS.keys() - {"out", "corpus", "data_dir", "devices", "nodes", "device"})
    ),
    VALUES,
    max_size=4,
)
#: A place in a file, as a share of it, and what is put there; None cuts off the rest.
DAMAGE = st.tuples(st.floats(0, 1), st.one_of(st.binary(max_size=20), st.none()))
#: What no sentence says: words of Python's and torch's own errors.
LEAKS = re.compile(
    r"Traceback|Error\(|object at 0x|<class|NoneType|numerator|enforce fail|positional|unhashable|"
    r"can't convert|subscriptable|argument must be|\.py\b"
)


def often(few: int, many: int) -> pytest.MarkDecorator:
    """Runs a test with a few examples, and in the slow tier with many."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def holds(examples: int, strategy: st.SearchStrategy, prove: Callable[[Any], None]) -> None:
    """Tries a property on examples."""
    settings(max_examples=examples, deadline=None)(given(strategy)(prove))()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat\na dog ran\n" * 60)
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--hidden_size=5", "--embedding_size=4", "--epochs=1", "--noise=none"]
    assert main(["train", f"--corpus={text}", f"--out={out}", *arguments]) == 0
    return out


@pytest.fixture
def agreed(capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Runs a command that must keep to the contract; returns its exit code."""

    def run(*arguments: str, codes: tuple[int, ...] = (0, 2)) -> int:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(str(stop.code))
        stderr = capsys.readouterr().err
        assert code in codes
        told = [line for line in stderr.splitlines() if line.startswith("noisin: ")]
        assert not LEAKS.search(stderr), stderr
        assert code == 0 or (told and stderr.splitlines()[-1] == told[-1]), stderr
        return code

    return run


def stop(trainer: Trainer) -> None:
    raise ValueError("it would train now")


def damaged(data: bytes, damage: tuple[float, bytes | None]) -> bytes:
    place, put = int(damage[0] * len(data)), damage[1]
    return data[:place] if put is None else data[:place] + put + data[place + len(put) :]


@often(150, 10_000)
def test_yaml(examples: int) -> None:
    def prove(text: str) -> None:
        try:
            parse_yaml(text)
        except ValueError as error:
            assert "YAML" in str(error)

    holds(examples, st.text(alphabet="[]{}:,&*!?|>-'\"#%@ \n\tab01.e~<", max_size=60), prove)


@often(100, 5_000)
def test_options_make_a_configuration_or_a_sentence(examples: int) -> None:
    def prove(options: dict[str, Any]) -> None:
        try:
            config = TrainConfig(**options)
        except ValueError as error:
            assert "\n" not in str(error) or "\n" in str(options)
        else:
            assert TrainConfig(**{**config.to_dict(), "trust_code": config.trust_code}) == config

    holds(examples, OPTIONS, prove)


@often(40, 2_000)
def test_a_configuration_file(text: Path, tmp_path: Path, agreed: Any, examples: int) -> None:
    """Options, or any bytes."""
    path, out = tmp_path / "options.yaml", tmp_path / "out"
    whole = yaml.safe_dump({"hidden_size": 5, "spread": [0.5], "noise": "none"}).encode()

    def prove(given: dict[str, Any] | bytes | tuple[float, bytes | None]) -> None:
        if isinstance(given, dict):
            data = yaml.safe_dump(given, allow_unicode=True).encode(errors="surrogatepass")
        else:
            data = given if isinstance(given, bytes) else damaged(whole, given)
        path.write_bytes(data)
        shutil.rmtree(out, ignore_errors=True)
        agreed("train", f"--config={path}", f"--corpus={text}", f"--out={out}")
        assert {p.name for p in tmp_path.iterdir()} <= {"options.yaml", "out"}
        assert path.read_bytes() == data

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "fit", stop)
        holds(examples, OPTIONS | st.binary(max_size=80) | DAMAGE, prove)


FILES = (
    "config.yaml",
    "config.json",
    "vocabulary.txt",
    "model.safetensors",
    "last.ckpt",
    "best.ckpt",
)


@often(8, 300)
def test_damaged_files_of_a_run(run: Path, tmp_path: Path, agreed: Any, examples: int) -> None:
    """Some bytes are replaced, or the rest is cut off; what is there is not written over."""
    copy = tmp_path / "copy"

    def prove(given: tuple[str, tuple[float, bytes | None]]) -> None:
        name, damage = given
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        data = damaged((copy / name).read_bytes(), damage)
        (copy / name).write_bytes(data)
        agreed("generate", str(copy), "--words=2")
        if agreed("train", f"--config={copy}/config.yaml", "--resume=true", "--quiet=true") == 2:
            assert (copy / name).read_bytes() == data

    holds(examples, st.tuples(st.sampled_from(FILES), DAMAGE), prove)


@often(60, 3_000)
def test_the_bytes_of_a_text(tmp_path: Path, agreed: Any, examples: int) -> None:
    whole = "the cat sat on γ\na dog ran\n".encode() * 12
    path, folder = tmp_path / "words.txt", tmp_path / "splits"
    folder.mkdir()

    def prove(given: bytes | tuple[float, bytes | None]) -> None:
        data = given if isinstance(given, bytes) else damaged(whole, given)
        path.write_bytes(data)
        for name in ("train.txt", "valid.txt", "test.txt"):
            (folder / name).write_bytes(data if name == "valid.txt" else whole)
        for corpus in (path, folder):
            agreed("corpus", str(corpus))
        assert path.read_bytes() == data

    holds(examples, st.binary(max_size=80) | DAMAGE, prove)


OPTIONS_OF_RECORDS = Options(grid=1, seeds=1)


def runs(results: Path) -> list[Run]:
    rows = [r for r in recipes("table2", OPTIONS_OF_RECORDS) if r.row.startswith("1-tanh-no")]
    return [run for recipe in rows for run in planned(recipe, OPTIONS_OF_RECORDS, results)]


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all entries of a record."""
    if not isinstance(value, (dict, list)):
        return [place]
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value)
    below = [found for key, item in inner for found in leaves(item, (*place, key))]
    return [place, *below] if place else below


@often(60, 3_000)
def test_damaged_records(tmp_path: Path, agreed: Any, examples: int) -> None:
    """Bytes, or an entry that is another value; the other rows are rendered all the same."""
    for planned_run in runs(tmp_path):
        fake(planned_run, 140, 130)
    path = runs(tmp_path)[0].path
    whole = path.read_bytes()
    places = leaves(json.loads(whole))

    def prove(given: tuple[tuple[Any, ...], Any] | tuple[float, bytes | None]) -> None:
        place, put = given
        if isinstance(place, tuple):
            record = json.loads(whole)
            entry = record
            for key in place[:-1]:
                entry = entry[key]
            entry[place[-1]] = put
            data = json.dumps(record).encode()
        else:
            data = damaged(whole, (place, put))
        path.write_bytes(data)
        asked = ["reproduce", "table2", "--grid=1", "--seeds=1", "--render=true"]
        agreed(*asked, f"--results={tmp_path}", codes=(0, 1))
        assert path.read_bytes() == data

    holds(examples, st.tuples(st.sampled_from(places), VALUES) | DAMAGE, prove)


@often(100, 5_000)
def test_a_damaged_progress_file(tmp_path: Path, examples: int) -> None:
    own = Worker(runs(tmp_path / "results")[0], tmp_path, jobs=1)
    own._output.close()

    def prove(given: Any) -> None:
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        (tmp_path / worker.PROGRESS).write_bytes(data)
        assert isinstance(own.stage, str) and own.epochs >= 0

    counts = st.dictionaries(st.sampled_from(["epoch", "step", "steps", "averaging"]), LEAVES)
    holds(examples, st.binary(max_size=20) | VALUES | counts, prove)
