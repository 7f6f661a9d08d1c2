"""A state that is conditioned on, under an ELBO: the guide must follow from it."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from noisin_pyro import Additive, NoisyRNN, NormalEmission, PriorGuide, SequenceModel

SPREAD = 0.5


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(0)
    noise = Additive(dist.Normal(0.0, 1.0))
    rnn = NoisyRNN(1, 2, nonlinearity="identity", noise=noise, spread=SPREAD, sites="timestep")
    return SequenceModel(nn.Identity(), rnn, NormalEmission(2, 1)).double()


def window() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    x, y = torch.randn(2, 3, 4, 1, dtype=torch.float64)
    return x, y, {"rnn.z_0_1": torch.randn(4, 2, dtype=torch.float64)}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_elbo_is_that_of_the_given_state(model: SequenceModel, elbo: Any) -> None:
    """log p(z_1 | h_1) + Σ log p(y_t | z_t), with the guide's own z_0 and z_2, term by term."""
    x, y, data = window()
    guide = poutine.block(poutine.condition(PriorGuide(model), data), hide=list(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyro.set_rng_seed(1)
        loss = elbo().loss(poutine.condition(model, data), guide, x, y)
        pyro.set_rng_seed(1)
        z: Any = poutine.trace(guide).get_trace(x, y).nodes
    states = [z["rnn.z_0_0"]["value"], data["rnn.z_0_1"], z["rnn.z_0_2"]["value"]]
    rnn, emission = model.rnn, model.emission
    before = x[1] @ rnn.weight_ih_l0.T + states[0] @ rnn.weight_hh_l0.T
    h = before + rnn.bias_ih_l0 + rnn.bias_hh_l0
    expected = dist.Normal(h, SPREAD).log_prob(states[1]).sum()
    for one, seen in zip(states, y):
        mean = one @ emission.weight.T + emission.bias
        expected += dist.Normal(mean, emission.log_scale.exp()).log_prob(seen).sum()
    torch.testing.assert_close(torch.tensor(-loss, dtype=torch.float64), expected.detach())


@pytest.mark.filterwarnings("ignore:Found")  # Pyro's own words
@pytest.mark.parametrize("elbo", [Trace_ELBO(), RenyiELBO(num_particles=2)])
def test_a_guide_that_draws_it_is_told_how_not_to(model: SequenceModel, elbo: Any) -> None:
    x, y, data = window()
    fixed, guide = poutine.condition(model, data), PriorGuide(model)
    for wrong in (guide, poutine.condition(guide, data)):
        with pytest.warns(UserWarning, match=r"'rnn.z_0_1' is observed .* poutine.block"):
            elbo.loss(fixed, wrong, x, y)
