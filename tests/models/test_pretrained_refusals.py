"""What no folder can hold is refused when a model is saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    MeanParameterized,
    NoisyGRU,
    NoisyRecurrent,
    NoisyRNN,
    weight_priors,
)
from tests.models.saved_models import NORMAL, WORDS, refusal

pytest.importorskip("safetensors")


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
    assert "rnn.weight_hh_l0 has a prior, which no file describes" in refusal(model, tmp_path)
    weight_priors(model := LanguageModel(WORDS, NoisyRNN(4, 5)))
    assert "rnn.weight_ih_l0 has a prior, which no file describes" in refusal(model, tmp_path)
    model = LanguageModel(WORDS, NoisyRNN(4, 5))
    model.embedding = nn.Sequential(model.embedding, nn.Linear(4, 4))
    model.embedding.num_embeddings = WORDS
    assert "vocab_size 9, input_size 4 and hidden_size 5 are not those" in refusal(model, tmp_path)
