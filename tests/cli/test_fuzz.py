"""Whatever the options, the YAML and the bytes of a run's files: exit code 0 or 2, one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noisin_pyro.cli import main
from noisin_pyro.training.config import HINTS, TrainConfig
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.safe_yaml import parse_yaml

SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
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


def agreed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code of a command that keeps to the contract."""
    capsys.readouterr()
    code = main(arguments)
    stderr = capsys.readouterr().err
    assert code in (0, 2)
    if code == 2:
        assert stderr.splitlines()[-1].startswith("noisin: "), stderr
    return code


@settings(max_examples=150, **SETTINGS)  # type: ignore[arg-type]
@given(st.text(alphabet="[]{}:,&*!?|>-'\"#%@ \n\tab01.e~<", max_size=60))
def test_yaml(text: str) -> None:
    try:
        parse_yaml(text)
    except ValueError as error:
        assert "YAML" in str(error)


@settings(max_examples=100, **SETTINGS)  # type: ignore[arg-type]
@given(OPTIONS)
def test_options_make_a_configuration_or_a_sentence(options: dict[str, Any]) -> None:
    try:
        config = TrainConfig(**options)
    except ValueError as error:
        assert "\n" not in str(error) or "\n" in str(options)
    else:
        assert TrainConfig(**{**config.to_dict(), "trust_code": config.trust_code}) == config


def fuzz_files(text: Path, folder: Path, capsys: Any, options: dict[str, Any]) -> None:
    path = folder / "options.yaml"
    path.write_text(yaml.safe_dump(options, allow_unicode=True))
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "fit", stop)
        agreed(["train", f"--config={path}", f"--corpus={text}", f"--out={out}"], capsys)
    assert {p.name for p in folder.iterdir()} <= {"options.yaml", "out"}


def stop(trainer: Trainer) -> None:
    raise ValueError("it would train now")


@settings(max_examples=25, **SETTINGS)  # type: ignore[arg-type]
@given(OPTIONS)
def test_a_configuration_file(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    fuzz_files(text, tmp_path, capsys, options)


@pytest.mark.slow
@settings(max_examples=2000, **SETTINGS)  # type: ignore[arg-type]
@given(OPTIONS)
def test_many_configuration_files(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    fuzz_files(text, tmp_path, capsys, options)


@settings(max_examples=30, **SETTINGS)  # type: ignore[arg-type]
@given(
    st.sampled_from(
        [
            *("config.yaml", "config.json", "vocabulary.txt", "model.safetensors"),
            *("last.ckpt", "best.ckpt"),
        ]
    ),
    st.floats(0, 1),
    st.one_of(st.binary(max_size=20), st.none()),
)
def test_damaged_files_of_a_run(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    share: float,
    put: bytes | None,
) -> None:
    """Some bytes are replaced, or the rest is cut off; what is there is not written over."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    data = (copy / name).read_bytes()
    place = int(share * len(data))
    damaged = data[:place] if put is None else data[:place] + put + data[place + len(put) :]
    (copy / name).write_bytes(damaged)
    agreed(["generate", str(copy), "--words=2"], capsys)
    if agreed(["train", f"--config={copy}/config.yaml", "--resume=true"], capsys) == 2:
        assert (copy / name).read_bytes() == damaged
