"""The folder of a stranger: no code runs, no memory is wasted, one sentence says what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noisin_pyro import LanguageModel, Learned, Multiplicative, NoisyLSTM, Vocabulary
from noisin_pyro.models import pretrained
from tests.models.saved_models import NORMAL, WORDS

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    vocabulary = Vocabulary.build(f"w{number}" for number in range(WORDS - 2))
    noise = [NORMAL, Multiplicative(dist.Beta(2.0, 2.0))]
    rnn = NoisyLSTM(4, 5, 2, noise=noise, spread=[Learned(0.5), torch.tensor(0.2)])
    LanguageModel(WORDS, rnn, input_noise=NORMAL).save_pretrained(folder, vocabulary)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def one_sentence(error: BaseException) -> bool:
    message = str(error).replace("config.json", "").replace("model.safetensors", "")
    return "\n" not in message and not message.endswith(".")


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The sentence with which a folder is refused after a change of its description."""
    path = folder / "config.json"
    before = path.read_text()
    values = json.loads(before)
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as caught:
        LanguageModel.from_pretrained(folder)
    path.write_text(before)
    LanguageModel.from_pretrained(folder)
    assert one_sentence(caught.value)
    return str(caught.value)


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets ``values[keys[0]][keys[1]]...`` to a value."""

    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


BASE = ("rnn", "noise", 0, "base")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("format", value=2), "its format is 2, and this noisin_pyro reads 1"),
        (put("code", value="x"), "has an unknown entry 'code'"),
        (put("rnn", "device", value="meta"), "its rnn has an unknown entry 'device'"),
        (put("rnn", "class", value="os.system"), "unknown RNN 'os.system'; the known ones are Noi"),
        (put("rnn", "class", value="NoisyRecurrent"), "unknown RNN 'NoisyRecurrent'"),
        (put("rnn", "class", value="NoisyGRU"), "zoneout must be a probability in [0, 1)"),
        (put("rnn", "hidden_size", value=2**31 - 1), "are not those of the weights"),
        (put("rnn", "hidden_size", value=10), "emission.weight must have shape (9, 10)"),
        (put("rnn", "input_size", value=10**30), "input_size must lie in 1 to 2,147,483,647"),
        (put("rnn", "num_layers", value=10**6), "num_layers must lie in 1 to 1,000"),
        (put("rnn", "num_layers", value=0), "num_layers must lie in 1 to 1,000, got 0"),
        (put("rnn", "num_layers", value=3), "noise must have one entry a layer, got 2"),
        (
            put("rnn", "num_layers", value=True),
            "num_layers of its rnn must be a whole number, got 'True'",
        ),
        (put("vocab_size", value="9"), "vocab_size of the description must be a whole number"),
        (put("rnn", "dropout", value=None), "dropout of its rnn must be a number, got 'None'"),
        (put("rnn", "dropout", value=2.0), "dropout should be a number in range [0, 1]"),
        (put("rnn", "dropout", value=float("nan")), "NaN is no number of JSON"),
        (put("rnn", "sites", value="all"), "sites must be 'sequence', 'timestep' or None"),
        (put("rnn", "noise", value=[None, None]), "rnn.spread_l0"),
        (put("rnn", "spread", 0, value=None), "a spread must have entries by their names"),
        (put("rnn", "spread", 0, value={"learned": {"init": 0.05}}), "must start above its floor"),
        (put("rnn", "spread", 0, value={"tensor": True}), "the weights have no rnn.spread_l0"),
        (put("rnn", "spread", 0, value={}), "a spread must have one of learned, prior"),
        (put("vocab_size", value=10), "its vocab_size 10, input_size 4 and hidden_size 5"),
        (put("dtype", value="int64"), "dtype must be one of float32, float64"),
        (put("tied_weights", value=True), "tied_weights needs the embedding to be as wide"),
        (put(*BASE, "class_path", value="os.system"), "must lie in torch.distributions"),
        (put(*BASE, "init_args", "scale", value="1"), "init_args must be numbers"),
        (put(*BASE, "init_args", "scale", value=-1.0), "cannot be built"),
        (put(*BASE, "dtype", value="int8"), "dtype must be one of"),
        (put("rnn", "noise", 0, "class", value="Reflected"), "unknown noise 'Reflected'"),
        (put("rnn", "noise", 0, "mean", value=3.0), "mean=3.0 contradicts Normal"),
    ],
)
def test_a_changed_description(change: Any, sentence: str, copy: Path) -> None:
    assert sentence in edited(copy, change)


def test_a_value_is_not_blamed_on_the_weights(copy: Path) -> None:
    refusal = edited(copy, put("dropout_words", value=-1))
    assert "config.json describes no model that can be built: dropout_words must lie in" in refusal
    assert "model.safetensors" not in refusal


def test_nothing_is_imported_unless_it_is_trusted(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "imported"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    code += "from torch.distributions import Normal\nclass Noise(Normal):\n"
    code += "    def __init__(self):\n        super().__init__(0.0, 1.0)\n"
    (tmp_path / "stranger.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    hostile = {"class_path": "stranger.Noise"}
    assert "add --trust_code true to the command, or trust_code=True" in edited(
        copy, put(*BASE, value=hostile)
    )
    prior = {"prior": hostile}
    assert "class_path must lie in" in edited(copy, put("rnn", "spread", 0, value=prior))
    assert not marker.exists()
    values = json.loads((copy / "config.json").read_text())
    put(*BASE, value=hostile)(values)
    (copy / "config.json").write_text(json.dumps(values))
    model = LanguageModel.from_pretrained(copy, trust_code=True)
    assert marker.exists()
    model.save_pretrained(tmp_path / "again")  # a trusted class can be written
    with pytest.raises(ValueError, match="'stranger.Noise'"):
        LanguageModel.from_pretrained(tmp_path / "again")


def test_no_more_memory_is_taken_than_the_file_has_bytes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (copy / "model.safetensors").stat().st_size
    monkeypatch.setattr(pretrained, "available_memory", lambda: 2 * size)
    LanguageModel.from_pretrained(copy)
    monkeypatch.setattr(pretrained, "available_memory", lambda: 2 * size - 1)
    with pytest.raises(ValueError, match="it needs about 0.0 GB of memory, but there are 0.0"):
        LanguageModel.from_pretrained(copy)


def test_sizes_are_compared_before_anything_is_allocated(copy: Path) -> None:
    """A γ for each of two thousand million units would need 8 GB, also where weights need none."""
    values = json.loads((copy / "config.json").read_text())
    values["rnn"]["hidden_size"] = 2**31 - 1
    values["rnn"]["spread"][0] = {"learned": {"init": 0.5, "per": "unit"}}
    (copy / "config.json").write_text(json.dumps(values))
    full = torch.full

    def small(size: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        assert torch.Size(size).numel() < 1000
        return full(size, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "full", small)
        with pytest.raises(ValueError, match="hidden_size 2147483647 are not those of the weights"):
            LanguageModel.from_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"its {re.escape(name)} is missing; give the folder"):
        LanguageModel.from_pretrained(copy)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1, "format": 1}', b" " * 1_000_001],
    ids=["empty", "cut", "list", "bytes", "deep", "twice", "long"],
)
def test_no_description(content: bytes, copy: Path) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json describes no model: ") as caught:
        LanguageModel.from_pretrained(copy)
    assert one_sentence(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(pretrained.FILES), st.floats(0, 1), st.binary(max_size=20) | st.none())
def test_damaged_files(
    saved: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    share: float,
    put: bytes | None,
) -> None:
    """Some bytes are replaced, or the rest is cut off."""
    folder = tmp_path_factory.mktemp("damaged") / "copy"
    shutil.copytree(saved, folder)
    data = (folder / name).read_bytes()
    place = int(share * len(data))
    damaged = data[:place] if put is None else data[:place] + put + data[place + len(put) :]
    (folder / name).write_bytes(damaged)
    try:
        LanguageModel.from_pretrained(folder)
    except ValueError as error:
        assert one_sentence(error), error


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch, copy: Path, tmp_path: Path) -> None:
    import sys

    model = LanguageModel.from_pretrained(copy)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: LanguageModel.from_pretrained(copy), lambda: model.save_pretrained(copy)):
        with pytest.raises(ImportError, match=re.escape('pip install "noisin-pyro[lm]"')):
            call()
