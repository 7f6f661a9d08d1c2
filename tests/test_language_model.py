"""LanguageModel: tied weights, sizes, and where training starts."""

import math

import pytest
import torch

from noisin_pyro import LanguageModel, NoisyLSTM


def test_tied_weights_are_one_parameter_and_start_near_uniform() -> None:
    torch.manual_seed(0)
    model = LanguageModel(1000, NoisyLSTM(200, 200), tied_weights=True)
    assert model.emission.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "emission.weight" not in names and "embedding.weight" in names
    tokens = torch.randint(1000, (21, 8))
    law, _ = model.predict(tokens[:-1], sample=False)
    loss = -law.log_prob(tokens[1:]).mean().item()
    assert loss == pytest.approx(math.log(1000), abs=0.1)


def test_tied_weights_need_equal_sizes() -> None:
    with pytest.raises(ValueError, match=r"as wide as the hidden state, got 4 and 6; make them"):
        LanguageModel(10, NoisyLSTM(4, 6), tied_weights=True)
