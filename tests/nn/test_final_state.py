"""The final state has memory of its own, as torch's has: who changes it in place changes no output.

A state is reset in place where an episode or a document ends, before or after the loss is computed.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from noisin_pyro import Additive, Multiplicative, NoisyRecurrent
from noisin_pyro.nn.registry import RNNS, build_rnn
from tests.helpers import flat

T, B, D, H = 5, 3, 4, 6
NOISES = [None, Additive(dist.Normal(0.0, 1.0)), Multiplicative(dist.Normal(0.0, 1.0))]
noises = pytest.mark.parametrize("noise", NOISES, ids=["none", "additive", "multiplicative"])


def resets(rnn: Any, steps: int) -> None:
    """Resets the state between the forward and the backward pass; compares with no reset."""
    x, found = torch.randn(steps, B, D), []
    for reset in (False, True):
        torch.manual_seed(0)
        output, state = rnn(x)
        for part in flat(state):
            if reset:
                part.detach()[:, :2] = 0.0
        found.append([output, *torch.autograd.grad(output.square().sum(), [*rnn.parameters()])])
    for ours, theirs in zip(*found):
        assert torch.equal(ours, theirs)


@noises
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("cell", RNNS)
def test_a_reset_leaves_the_output_and_its_gradient(
    cell: str, sites: Any, steps: int, noise: Any
) -> None:
    resets(build_rnn(cell, D, H, 1, noise=noise, spread=0.5, sites=sites), steps)


@noises
@pytest.mark.parametrize("options", [{"zoneout": 0.3}, {"noise_to": "weights"}], ids=str)
def test_of_other_ways_through_a_layer(options: Any, noise: Any) -> None:
    resets(build_rnn("gru", D, H, 1, noise=noise, **options), T)
    if "zoneout" in options:
        resets(NoisyRecurrent(nn.GRUCell(D, H), noise=noise, **options), T)


@noises
def test_an_output_that_is_changed_in_place_leaves_the_state(noise: Any) -> None:
    rnn = build_rnn("rnn_tanh", D, H, 1, noise=noise)
    with torch.no_grad():
        output, state = rnn(torch.randn(T, B, D))
        before = state.clone()
        output.relu_()
    assert torch.equal(state, before)
