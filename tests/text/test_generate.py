"""Text drawn from a language model."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    NoisyLSTM,
    NoisyRNN,
    Vocabulary,
    evaluate,
    forecast,
    sample_text,
    weight_priors,
)
from noisin_pyro.text.generate import sample_tokens

VOCABULARY = Vocabulary.build([*"abcdefghijklmnopqrst"])


def build(kind: Any = NoisyRNN, **options: Any) -> LanguageModel:
    rnn = kind(4, 4, 2, noise=Additive(dist.Normal(0.0, 1.0)), dropout=0.5)
    model = LanguageModel(len(VOCABULARY), rnn, **options)
    model.vocabulary = VOCABULARY
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 3.0)
    return model


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_model_in_training_draws_without_dropout() -> None:
    model = build(dropout_words=0.5, dropout_input=0.5, dropout_output=0.9)
    before = torch.get_rng_state()
    texts = []
    for training in (True, True, False):
        model.train(training)
        texts.append(sample_text(model, "a", 30, generator=seeded()))
        assert model.training is model.rnn.training is training
    assert texts[0] == texts[1] == texts[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert sample_text(model, "a", 30, generator=seeded(2)) != texts[0]
    assert sample_text(model, "a", 30) != texts[0]
    assert not torch.equal(torch.get_rng_state(), before)


def test_noise_is_drawn_if_asked_for() -> None:
    model = build()
    cold: dict[str, Any] = {"temperature": 1e-3}
    mean = [sample_text(model, "a", 30, **cold, generator=seeded(seed)) for seed in (1, 2)]
    noisy = [sample_text(model, "a", 30, sample=True, **cold, generator=seeded(s)) for s in (1, 2)]
    assert mean[0] == mean[1] and len({mean[0], *noisy}) == 3
    again = sample_text(model, "a", 30, sample=True, **cold, generator=seeded(1))
    assert again == noisy[0]


@pytest.mark.parametrize("sample", [True, False])
def test_priors_are_drawn_once_for_the_text(sample: bool) -> None:
    noise = Additive(dist.Normal(0.0, 1.0))
    model = LanguageModel(10, NoisyRNN(4, 6, noise=noise, spread=dist.LogNormal(0.0, 1.0)))
    weight_priors(model, 0.5)
    read: list[torch.Tensor] = []
    model.rnn.register_forward_pre_hook(
        lambda rnn, _: read.append(torch.cat([rnn.weight_hh_l0.flatten(), rnn.spread[0].view(1)]))
    )
    for _ in range(2):
        sample_tokens(model, torch.zeros(3, 1, dtype=torch.long), 4, sample=sample)
    first, second = read[:5], read[5:]
    assert all(torch.equal(values, first[0]) for values in first)
    assert all(torch.equal(values, second[0]) for values in second)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_carries_the_state(temperature: float, dtype: torch.dtype) -> None:
    """At next to no temperature each word is the likeliest after all before it, read at once."""
    model = build(NoisyLSTM).to(dtype)
    text = sample_text(model, "a b", 20, temperature=temperature)
    words = VOCABULARY.split(text)
    assert words[:2] == ["a", "b"] and len(words) == 22
    x = VOCABULARY.encode(words[:-1]).unsqueeze(1)
    logits = model.eval().predict(x)[0].logits[1:, 0].detach()
    logits[:, VOCABULARY.encode(["<unk>"])] = -torch.inf
    assert words[2:] == VOCABULARY.decode(logits.argmax(-1))


def test_frequencies_are_those_of_the_softmax() -> None:
    """False alarms: 22 frequencies among 40,000 draws, each at six standard errors, 2e-9."""
    model, temperature = build(), 2.0
    x = VOCABULARY.encode(["a", "b"]).unsqueeze(1)
    logits = model.eval().predict(x)[0].logits[-1, 0].detach() / temperature
    logits[3] = -torch.inf
    drawn = sample_tokens(
        model, x.expand(2, 40_000), 1, temperature=temperature, exclude=[3], generator=seeded()
    )
    expected = logits.softmax(0)
    found = torch.bincount(drawn[0], minlength=len(VOCABULARY)) / 40_000
    errors = (found - expected).abs() / (expected * (1 - expected) / 40_000).sqrt().clamp(min=1e-9)
    assert found[3] == 0 and errors.max() < 6


def test_an_empty_prompt_starts_a_line_and_lines_are_lines() -> None:
    model = build().double()
    from_start = sample_text(model, "", 10, generator=seeded())
    assert sample_text(model, "\n", 10, generator=seeded()) == f"\n{from_start}"
    for weight in model.parameters():
        nn.init.zeros_(weight)
    model.emission.bias.data[VOCABULARY.ids["<eos>"]] = 100.0
    assert sample_text(model, "a b", 2) == "a b\n\n"


def test_characters() -> None:
    vocabulary = Vocabulary.build([*"abc", "<0x20>"], tokens="characters")
    model = LanguageModel(len(vocabulary), NoisyRNN(4, 4))
    text = sample_text(model, "a b\n", 50, vocabulary=vocabulary)
    assert text.startswith("a b\n") and len(text) == 54 and set(text) <= set("abc \n")


@pytest.mark.gpu
def test_the_same_words_on_a_gpu() -> None:
    model = build(NoisyLSTM).double()
    ours = sample_text(model, "a", 30, generator=seeded())
    assert sample_text(model.cuda(), "a", 30, generator=seeded()) == ours


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive and finite, got nan"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_text(build(), "a", **options)


def test_a_length_is_a_whole_number() -> None:
    with pytest.raises(TypeError, match="length must be a whole number, got '5'"):
        sample_text(build(), "a", "5")  # type: ignore[arg-type]


def test_a_model_without_vocabulary() -> None:
    with pytest.raises(ValueError, match="the model has no vocabulary; give vocabulary="):
        sample_text(LanguageModel(9, NoisyRNN(4, 4)))


def test_a_network_of_your_own_is_no_sequence_model() -> None:
    network: Any = nn.LSTM(4, 4)
    tokens = torch.zeros(20, dtype=torch.long)
    for call in (
        lambda: evaluate(network, tokens),
        lambda: forecast(network, tokens.unsqueeze(1), 3),
        lambda: sample_text(network, "a"),
    ):
        with pytest.raises(TypeError, match="takes a SequenceModel or LanguageModel, got LSTM; bu"):
            call()
