"""What the tests of saved models share: a small noise, and the comparison of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from noisin_pyro import Additive, LanguageModel
from tests.helpers import flat

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


def refusal(model: LanguageModel, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        model.save_pretrained(folder / "refused")
    assert not (folder / "refused").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)
