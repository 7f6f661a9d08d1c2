"""A PriorGuide that leaves priors on γ and on weights to an automatic guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroSample

from noisin_pyro import Additive, LanguageModel, NoisinELBO, NoisyGRU, PriorGuide

T, B, D, H = 5, 3, 4, 6
NOISE = Additive(dist.Normal(0.0, 1.0))


def model(sites: Any = "sequence") -> LanguageModel:
    rnn: Any = NoisyGRU(D, H, noise=NOISE, spread=dist.LogNormal(-1.0, 0.3), sites=sites)
    rnn.weight_hh_l0 = PyroSample(dist.Normal(0.0, 0.3).expand([3 * H, H]).to_event(2))
    return LanguageModel(7, rnn)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("rest", [AutoNormal, AutoDelta])
def test_the_noise_has_its_prior_and_the_rest_its_guide(rest: Any, sites: Any) -> None:
    """Every site stands in both; the noise's densities cancel at the values that rest drew."""
    program, x = model(sites), torch.randint(7, (T, B))
    guide = PriorGuide(program, rest=rest)
    guide(x, x)
    trace = poutine.trace(guide).get_trace(x, x)
    replayed = poutine.trace(poutine.replay(program, trace=trace)).get_trace(x, x)
    for part in (trace, replayed):
        part.compute_log_prob()
    noise = [f"rnn.z_0_{t}" for t in range(T)] if sites == "timestep" else ["rnn.noise_0"]
    for name in noise:
        torch.testing.assert_close(trace.nodes[name]["log_prob"], replayed.nodes[name]["log_prob"])
    for name in ("rnn.spread_l0", "rnn.weight_hh_l0"):
        assert torch.equal(trace.nodes[name]["value"], replayed.nodes[name]["value"])
    names = {name for name in trace.stochastic_nodes if "rnn." in name}
    names -= {name for name in names if name.endswith("_unconstrained")}  # auxiliary
    assert names == {*noise, "rnn.spread_l0", "rnn.weight_hh_l0"}


def test_it_trains() -> None:
    program, x = model(), torch.randint(7, (T, B))
    guide = PriorGuide(program, rest=AutoNormal)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(x[:-1], x[1:]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert "rest.locs.rnn.spread_l0" in pyro.get_param_store()


def test_noisin_elbo_has_no_place_for_its_kl() -> None:
    program = model()
    with pytest.raises(TypeError, match="leaves out the KL.*Trace_ELBO"):
        NoisinELBO()(program, PriorGuide(program, rest=AutoNormal))
