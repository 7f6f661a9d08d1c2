"""A sample site per timestep, as Pyro sees it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.inspect import get_dependencies

from noisin_pyro import Additive, LanguageModel, NoisyGRU, NoisyLSTM
from tests.helpers import NORMAL, D, H, K, batch


def test_pyro_sees_the_past_alone_behind_a_state() -> None:
    """What ``pyro.render_model`` draws: no arrow back in time, though the layers run in turn."""
    rnn = NoisyLSTM(D, H, 2, noise=Additive(NORMAL), spread=0.5, sites="timestep")
    x, y = batch()
    arrows: Any = get_dependencies(LanguageModel(K, rnn), (x, y))["prior_dependencies"]
    states = [name for name in arrows if name.startswith("rnn.z_")]
    assert len(states) == 2 * len(x)
    for state in states:
        layer, step = map(int, state.removeprefix("rnn.z_").split("_"))
        past = {f"rnn.z_{k}_{t}" for k in range(layer + 1) for t in range(step + 1)}
        assert set(arrows[state]) == past


def test_a_guide_that_runs_the_rnn_is_a_prior_guide() -> None:
    """It draws each state as the model does, and Pyro does not warn of the states it records."""
    rnn = NoisyGRU(D, H, noise=Additive(NORMAL), spread=0.5, sites="timestep")
    x, y = torch.randn(5, 3, D), torch.randn(5, 3, H)

    def model() -> None:
        with pyro.plate("series", 3):
            z, _ = rnn(x)
            pyro.sample("y", dist.Normal(z.transpose(0, 1), 1.0).to_event(2), obs=y.transpose(0, 1))

    def guide() -> None:
        with pyro.plate("series", 3):
            rnn(x)

    torch.manual_seed(0)
    loss = Trace_ELBO().loss(model, guide)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, -dist.Normal(rnn(x)[0], 1.0).log_prob(y).sum().item())
