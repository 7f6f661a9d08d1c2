"""A γ that is given, listed or loaded in a way that would give wrong numbers without a word."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noisin_pyro import Additive, Learned, NoisyLSTM, spread_parameters

UNITS = 4


def lstm(spread: Any, layers: int = 1, **options: Any) -> NoisyLSTM:
    noise = Additive(dist.Normal(0.0, 1.0))
    return NoisyLSTM(3, UNITS, layers, noise=noise, spread=spread, **options)


@pytest.mark.parametrize("shape", [(), (UNITS,)])
def test_a_computed_tensor_would_lose_its_gradient(shape: tuple[int, ...]) -> None:
    raw = nn.Parameter(torch.zeros(shape))
    rnn = lstm(0.5)
    with pytest.raises(
        ValueError,
        match=r"requires a gradient must be an nn.Parameter, got .*0\.69.* would be lost",
    ):
        rnn.spread = F.softplus(raw)
    rnn.spread = F.softplus(raw).detach()
    assert float(rnn.spread_l0.max()) == pytest.approx(0.6931, abs=1e-4)


def test_a_parameter_of_several_layers_is_listed_once() -> None:
    """Twice in one group torch's optimizers warn, and will refuse."""
    gamma = nn.Parameter(torch.tensor(0.4))
    model = nn.ModuleList([lstm(gamma, 2, bidirectional=True), lstm(gamma), lstm(Learned(0.3))])
    found = list(spread_parameters(model))
    assert len(found) == 2 and found[0] is gamma
    torch.optim.SGD(found, lr=0.1)


EACH = torch.linspace(0.2, 0.8, UNITS)


@pytest.mark.parametrize(
    ("saved", "here"),
    [(EACH, 0.5), (EACH, torch.tensor(0.5)), (Learned(0.3, per="unit"), Learned(0.5))],
    ids=["number", "tensor", "learned"],
)
def test_one_for_each_unit_is_not_loaded_as_one_for_all(saved: Any, here: Any) -> None:
    """torch takes the first of several numbers where it has room for one."""
    with pytest.raises(RuntimeError, match="size mismatch for 0.spread_l0.*each of 4 units has"):
        nn.ModuleList([lstm(here)]).load_state_dict(nn.ModuleList([lstm(saved)]).state_dict())
