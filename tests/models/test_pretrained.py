"""A model as a folder: it comes back whole."""

from __future__ import annotations

import inspect
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from noisin_pyro import (
    FAMILIES,
    Additive,
    LanguageModel,
    Learned,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    SequenceModel,
    Vocabulary,
    family,
)
from noisin_pyro.models import pretrained
from noisin_pyro.nn.registry import RNNS, build_rnn
from noisin_pyro.nn.weight_drop import weight_drop
from tests.models.saved_models import NORMAL, WORDS, assert_same, refusal

pytest.importorskip("safetensors")


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
        Fraction(1, 3),
        np.float32(0.3),
    ],
    ids=repr,
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


def test_a_loaded_spread_is_the_one_that_is_saved(tmp_path: Path) -> None:
    rnn = NoisyRNN(4, 5, noise=NORMAL, spread=0.3)
    model = LanguageModel(WORDS, rnn, input_noise=NORMAL, input_spread=0.7)
    loaded = {"rnn.spread_l0": torch.tensor(0.1), "input_spread": torch.tensor(0.2)}
    model.load_state_dict({**model.state_dict(), **loaded})
    again = assert_same(model, tmp_path)
    assert [again.rnn.spread[0], again.input_spread] == [torch.tensor(0.1), torch.tensor(0.2)]


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


def test_a_model_is_saved_and_read_on_the_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    model = LanguageModel(10, NoisyGRU(4, 6, noise=family("laplace"), spread=0.3))
    with torch.device("meta"):
        model.save_pretrained(tmp_path)
        read = LanguageModel.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight)
