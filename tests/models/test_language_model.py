"""LanguageModel: tied weights, sizes, and where training starts."""

import math

import pytest
import torch

from noisin_pyro import LanguageModel, NoisyLSTM


def test_tied_weights_are_one_parameter() -> None:
    model = LanguageModel(1000, NoisyLSTM(20, 20), tied_weights=True)
    assert model.emission.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "emission.weight" not in names and "embedding.weight" in names


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_starts_near_uniform_over_words(tied: bool) -> None:
    model = LanguageModel(1000, NoisyLSTM(200, 200), tied_weights=tied)
    for weight in (model.embedding.weight, model.emission.weight):
        assert weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    tokens = torch.randint(1000, (21, 8))
    distribution, _ = model.predict(tokens[:-1], sample=False)
    loss = -distribution.log_prob(tokens[1:]).mean().item()
    assert loss == pytest.approx(math.log(1000), abs=0.1)


def test_tied_weights_need_equal_sizes() -> None:
    with pytest.raises(ValueError, match=r"as wide as the hidden state, got 4 and 6; make them"):
        LanguageModel(10, NoisyLSTM(4, 6), tied_weights=True)


@pytest.mark.parametrize("number", [-1, 10])
def test_words_of_another_vocabulary(number: int) -> None:
    model = LanguageModel(10, NoisyLSTM(4, 6))
    with pytest.raises(IndexError, match=f"x must hold numbers from 0 to 9, got .*{number}.*; enc"):
        model.predict(torch.tensor([[3], [number]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_words_are_whole_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"as torch.long, got {dtype}"):
        LanguageModel(10, NoisyLSTM(4, 6)).predict(torch.ones(3, 2).to(dtype))


def test_a_model_of_no_words_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        LanguageModel(0, NoisyLSTM(3, 4))
