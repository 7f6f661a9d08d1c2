"""Text drawn from a language model."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from noisin_pyro import Additive, LanguageModel, NoisyLSTM, NoisyRNN
from noisin_pyro.text.corpora import Vocabulary
from noisin_pyro.text.generate import continue_text

VOCABULARY = Vocabulary.build([*"abcdefghijklmnopqrst"])


def build(kind: Any = NoisyRNN, **options: Any) -> LanguageModel:
    rnn = kind(4, 4, 2, noise=Additive(dist.Normal(0.0, 1.0)), dropout=0.5)
    model = LanguageModel(len(VOCABULARY), rnn, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 3.0)
    return model


def test_a_model_in_training_draws_without_dropout() -> None:
    model = build(dropout_words=0.5, dropout_input=0.5, dropout_output=0.9)
    before = torch.get_rng_state()
    texts = []
    for training in (True, True, False):
        model.train(training)
        texts.append(continue_text(model, VOCABULARY, ["a"], 30))
        assert model.training is model.rnn.training is training
    assert texts[0] == texts[1] == texts[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert continue_text(model, VOCABULARY, ["a"], 30, seed=2) != texts[0]


def test_it_carries_the_state() -> None:
    """At next to no temperature each word is the likeliest after all before it, read at once."""
    model = build(NoisyLSTM).double()
    drawn = continue_text(model, VOCABULARY, ["a", "b"], 20, temperature=1e-3)
    x = VOCABULARY.encode(["a", "b", *drawn[:-1]]).unsqueeze(1)
    logits = model.eval().predict(x)[0].logits[1:, 0].detach()
    logits[:, VOCABULARY.encode(["<unk>"])] = -torch.inf
    assert drawn == VOCABULARY.decode(logits.argmax(-1))


@pytest.mark.gpu
def test_the_same_words_on_a_gpu() -> None:
    model = build(NoisyLSTM).double()
    ours = continue_text(model, VOCABULARY, ["a"], 30)
    assert continue_text(model.cuda(), VOCABULARY, ["a"], 30) == ours


@pytest.mark.parametrize(
    "options, message",
    [
        ({"words": 0}, "words must be at least 1, got 0"),
        ({"words": 5, "temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        continue_text(build(), VOCABULARY, ["a"], **options)
