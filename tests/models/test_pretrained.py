"""A model as a folder: it comes back whole, without code, and a stranger's folder does no harm."""

from __future__ import annotations

import inspect
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
from pyro.nn import PyroSample
from torch import nn

from noisin_pyro import (
    FAMILIES,
    Additive,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRecurrent,
    NoisyRNN,
    SequenceModel,
    Vocabulary,
    family,
)
from noisin_pyro.models import pretrained
from noisin_pyro.nn.registry import RNNS, build_rnn
from noisin_pyro.nn.weight_drop import weight_drop
from tests.helpers import flat

pytest.importorskip("safetensors")
WORDS = 9
NORMAL = Additive(dist.Normal(0.0, 1.0))


def outputs(model: LanguageModel) -> list[Any]:
    """What a model says of a text: along its mean path, and with noise and dropout by a seed."""
    x = torch.arange(WORDS).repeat(3).view(9, 3)
    torch.manual_seed(5)
    said: list[Any] = []
    for training in (False, True):
        model.train(training)
        emitted, state = model.predict(x, sample=training)
        said += [emitted.logits, state]
    model.eval()
    return [part.detach() for part in flat(*said)]


def assert_same(model: LanguageModel, folder: Path, **options: Any) -> LanguageModel:
    """Saves a model and reads it back."""
    for parameter in model.parameters():  # no weight is as it was drawn
        parameter.data += 0.01
    before = torch.get_rng_state()
    model.save_pretrained(folder)
    again = LanguageModel.from_pretrained(folder, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training and repr(again) == repr(model)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for one, other in zip(model.rnn.spread, again.rnn.spread, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert all(torch.equal(*pair) for pair in zip(outputs(model), outputs(again), strict=True))
    assert {type(p) for p in again.parameters()} == {nn.Parameter}
    return again


@pytest.mark.parametrize("cell", RNNS)
def test_every_rnn(cell: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"noise": Multiplicative(dist.Normal(0.0, 1.0)), "dropout": 0.25}
    for noise_to in ("both", "output", "recurrence"):
        rnn = build_rnn(cell, 4, 5, 2, **options, spread=[0.3, 0.2], noise_to=noise_to)
        assert_same(LanguageModel(WORDS, rnn, dropout_output=0.5), tmp_path / noise_to)
    assert_same(LanguageModel(WORDS, build_rnn(cell, 4, 5, 1, bias=False)), tmp_path / "clean")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("injection", ["additive", "multiplicative"])
def test_every_family(name: str, injection: Any, tmp_path: Path) -> None:
    assert_same(LanguageModel(WORDS, NoisyRNN(4, 5, noise=family(name, injection))), tmp_path)


@pytest.mark.parametrize(
    "noise",
    [
        Additive(dist.StudentT(5.0, 0.5, 2.0)),
        Additive(torch.distributions.Laplace(torch.tensor(0.1, dtype=torch.float64), 3.0)),
        Additive(dist.Gumbel(torch.tensor(0.1, dtype=torch.float64), 3.0)),
        Multiplicative(dist.Bernoulli(logits=0.3)),
        Multiplicative(dist.Binomial(3, torch.tensor(0.3))),
        Additive(dist.NegativeBinomial(2, logits=-1.0)),
        Multiplicative(dist.VonMises(0.0, 2.0), mean=0.0, stddev=0.81),
    ],
    ids=lambda noise: type(noise.base).__name__,
)
def test_other_bases(noise: Any, tmp_path: Path) -> None:
    again = assert_same(LanguageModel(WORDS, NoisyGRU(4, 5, noise=noise)), tmp_path)
    base: Any = again.rnn.noise[0]
    assert (base.mean, base.stddev) == (noise.mean, noise.stddev)


@pytest.mark.parametrize(
    "spread",
    [
        Learned(0.4),
        Learned(0.4, lower=0.2, per="unit"),
        torch.tensor(0.3),
        torch.tensor([0.3, 0.4, 0.5, 0.1, 0.2]),
        nn.Parameter(torch.tensor(0.3)),
        nn.Parameter(torch.full((5,), 0.3)),
        1 / 3,
    ],
    ids=["learned", "unit", "tensor", "tensor per unit", "parameter", "parameter per unit", "1/3"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_spread(spread: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    rnn = NoisyLSTM(4, 5, 2, noise=[None, NORMAL], spread=[0.1, spread])
    model = LanguageModel(WORDS, rnn, input_noise=NORMAL, input_spread=0.7).to(dtype)
    again = assert_same(model, tmp_path)
    assert again.rnn.like.dtype is dtype
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in again.named_parameters()]


def test_a_spread_set_anew_is_the_one_that_is_saved(tmp_path: Path) -> None:
    model = LanguageModel(WORDS, NoisyRNN(4, 5, noise=NORMAL, spread=0.3))
    model.rnn.spread = 0.1
    assert assert_same(model, tmp_path).rnn.spread[0] == torch.tensor(0.1)


def test_a_prior_on_the_spread(tmp_path: Path) -> None:
    model = LanguageModel(WORDS, NoisyRNN(4, 5, noise=NORMAL, spread=dist.LogNormal(-1.0, 0.5)))
    model.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    draws = []
    for one in (model, again):
        torch.manual_seed(3)
        draws.append(one.rnn.spread[0])
    assert torch.equal(*draws) and repr(model) == repr(again)


@pytest.mark.parametrize("sites", ["sequence", "timestep", None])
def test_every_other_option(sites: Any, tmp_path: Path) -> None:
    rnn = NoisyRNN(5, 5, 2, "sigmoid", noise=NORMAL, sites=sites, tied=sites == "sequence")
    rates = {"dropout_words": 0.1, "dropout_input": 0.2, "dropout_output": 0.3}
    options: dict[str, Any] = {"tied_weights": True, "input_noise": family("gamma"), **rates}
    spread = Learned(0.5, per="unit")
    model = LanguageModel(WORDS, rnn, **options, input_spread=spread, name="mine")
    again = assert_same(model, tmp_path, name="mine")
    assert again.emission.weight is again.embedding.weight
    assert (again.rnn.sites, again.rnn.tied) == (sites, model.rnn.tied)
    assert [getattr(again, name) for name in rates] == list(rates.values())
    assert again._pyro_name == "mine"


def test_zoneout_and_weight_drop(tmp_path: Path) -> None:
    rnn = weight_drop(NoisyLSTM(4, 5, 2, noise=NORMAL, zoneout=[0.3, 0.1]), p=0.4)
    again = assert_same(LanguageModel(WORDS, rnn), tmp_path)
    drop: Any = again.rnn.parametrizations.weight_hh_l1[0]
    assert drop.p == 0.4 and again.rnn.zoneout == (0.3, 0.1)
    other = LanguageModel(WORDS, weight_drop(NoisyLSTM(4, 5), "weight_ih", p=0.4))
    assert "of parametrizations a file describes weight_drop(rnn) alone" in refusal(other, tmp_path)
    other = LanguageModel(
        WORDS, nn.utils.parametrizations.weight_norm(NoisyGRU(4, 5), "weight_hh_l0")
    )
    assert "got weight_hh_l0; save its state_dict()" in refusal(other, tmp_path)


def test_no_argument_is_forgotten(tmp_path: Path) -> None:
    """Whoever adds an argument to a constructor adds it to the description, or here."""
    elsewhere = {"self", "device", "dtype", "name", "batch_first", "bidirectional", "proj_size"}
    for cell in RNNS:
        rnn = build_rnn(cell, 4, 5, 1, noise=NORMAL)
        model = LanguageModel(WORDS, rnn, input_noise=NORMAL)
        model.save_pretrained(tmp_path)
        said = json.loads((tmp_path / "config.json").read_text())
        arguments = inspect.signature(type(rnn).__init__).parameters
        assert set(arguments) - elsewhere == said["rnn"].keys() - {"class", "weight_drop"}
        own = {
            **inspect.signature(LanguageModel.__init__).parameters,
            **inspect.signature(SequenceModel.__init__).parameters,
        }
        there = said.keys() - {"format", "dtype", "tokens"} | {"embedding", "emission", "options"}
        assert set(own) - elsewhere == there


def test_the_folder(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(f"w{number}" for number in range(WORDS - 2))
    model = LanguageModel(WORDS, NoisyRNN(4, 5, noise=NORMAL))
    with pytest.raises(ValueError, match="the vocabulary has 2 words and the model 9"):
        model.save_pretrained(tmp_path / "new", Vocabulary.build([]))
    assert not (tmp_path / "new").exists()
    for words in (None, vocabulary):
        model.save_pretrained(tmp_path / "new" / "model", words)
        names = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
        assert names == sorted(pretrained.FILES[: 2 if words is None else 3])
        assert LanguageModel.from_pretrained(tmp_path / "new" / "model").vocabulary == words
    model.vocabulary = vocabulary
    model.save_pretrained(str(tmp_path))
    assert LanguageModel.from_pretrained(str(tmp_path)).vocabulary == vocabulary
    (tmp_path / "vocabulary.txt").write_text("<unk>\n<eos>\n")
    with pytest.raises(ValueError, match="vocabulary.txt has 2 words and the model 9; bring back"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_subclass_comes_back_as_one(tmp_path: Path) -> None:
    class Mine(LanguageModel):
        pass

    Mine(WORDS, NoisyRNN(4, 5)).save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine


# What no file holds


def refusal(model: LanguageModel, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        model.save_pretrained(folder / "refused")
    assert not (folder / "refused").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mixture() -> dist.MixtureSameFamily:
    parts = dist.Normal(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 2.0]))
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)


class Local(dist.Normal):
    """A class of this file, which another machine does not have."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


def test_what_is_code_is_refused(tmp_path: Path) -> None:
    class Inner(Local):
        pass

    def said(rnn: Any) -> str:
        return refusal(LanguageModel(WORDS, rnn), tmp_path)

    gamma = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)))
    assert (
        "a MeanParameterized noise is a function, which no file holds; save its state_dict()"
        in (said(NoisyRNN(4, 5, 1, "sigmoid", noise=gamma)))
    )
    assert "a NoisyRecurrent runs code of your own" in said(NoisyRecurrent(nn.GRUCell(4, 5)))
    assert "the base of Additive cannot be described, since MixtureSameFamily" in said(
        NoisyRNN(4, 5, noise=Additive(mixture()))
    )
    assert re.search(r"since .*Inner cannot be imported by its name; save its state_dict", said(
        NoisyRNN(4, 5, noise=Additive(Inner()))
    ))  # fmt: skip
    prior = dist.LogNormal(0.0, 1.0).expand([5]).to_event(1)
    assert "the prior on spread_l0 cannot be described" in said(
        NoisyRNN(4, 5, noise=NORMAL, spread=prior)
    )

    class Own(NoisyGRU):
        pass

    assert "a Own runs code of your own" in said(Own(4, 5))


def test_a_part_that_the_description_lacks_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(WORDS, NoisyRNN(4, 5))
    model.emission = nn.Linear(5, WORDS, bias=False)
    assert "emission.bias must have shape (9,), got None" in refusal(model, tmp_path)
    model = LanguageModel(WORDS, NoisyRNN(4, 5))
    model.rnn.weight_hh_l0 = PyroSample(dist.Normal(0.0, 1.0).expand([5, 5]).to_event(2))
    assert "rnn.weight_hh_l0 must have shape (5, 5), got None" in refusal(model, tmp_path)
    model = LanguageModel(WORDS, NoisyRNN(4, 5))
    model.embedding = nn.Sequential(model.embedding, nn.Linear(4, 4))
    model.embedding.num_embeddings = WORDS
    assert "vocab_size 9, input_size 4 and hidden_size 5 are not those" in refusal(model, tmp_path)


# A stranger's folder


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


def test_a_model_is_saved_and_read_on_the_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    model = LanguageModel(10, NoisyGRU(4, 6, noise=family("laplace"), spread=0.3))
    with torch.device("meta"):
        model.save_pretrained(tmp_path)
        read = LanguageModel.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight)


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
