"""A hierarchical prior on γ: a function of the RNN, whose parameters are random or learned."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroParam, PyroSample
from pyro.poutine.util import prune_subsample_sites
from torch import nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    NoisyGRU,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    evaluate,
    forecast,
)

T, B, H = 5, 3, 4
NOISE = Additive(dist.Normal(0.0, 1.0))
X = torch.randn(T, B, 1, generator=torch.Generator().manual_seed(0))


def shared(rnn: Any, units: int = 0) -> Any:
    """γ of all layers, or units, around the attribute ``mean``."""
    mean = rnn.mean.unsqueeze(-1).expand(*rnn.mean.shape, units) if units else rnn.mean
    return dist.LogNormal(mean, 0.3).to_event(1 if units else 0)


def build(prior: Any, mean: Any, sites: Any = "sequence") -> SequenceModel:
    rnn = NoisyGRU(1, H, 2, noise=NOISE, sites=sites)
    rnn.mean = mean
    rnn.spread = PyroSample(prior)
    return SequenceModel(nn.Identity(), rnn, NormalEmission(H, 1))


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("units", [0, H], ids=["per layer", "per unit"])
def test_each_particle_has_its_own_mean_and_spreads(units: int, sites: Any) -> None:
    model = build(partial(shared, units=units), PyroSample(dist.Normal(-1.0, 0.5)), sites)
    with pyro.plate("particles", 6, dim=-3):
        together = prune_subsample_sites(pyro.poutine.trace(model).get_trace(X[:-1], X[1:]))
    together.compute_log_prob()
    for one in (0, 5):
        values = {name: together.nodes[name]["value"][one] for name in together.stochastic_nodes}
        values["rnn.mean"] = values["rnn.mean"].reshape(())
        for name in ("rnn.spread_l0", "rnn.spread_l1"):
            values[name] = values[name].reshape((units,) if units else ())
        alone = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(X[:-1], X[1:])
        alone.compute_log_prob()
        expected = dist.LogNormal(values["rnn.mean"], 0.3).log_prob(values["rnn.spread_l1"]).sum()
        torch.testing.assert_close(alone.nodes["rnn.spread_l1"]["log_prob_sum"], expected)
        for name in ("y", "rnn.spread_l1"):
            mine, reference = (t.nodes[name]["log_prob"] for t in (together, alone))
            torch.testing.assert_close(mine[one], reference.expand(mine[one].shape))


def test_a_guide_infers_the_mean_with_the_spreads() -> None:
    model = build(shared, PyroSample(dist.Normal(-1.0, 0.5)))
    guide = PriorGuide(model, rest=AutoNormal)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(X[:-1], X[1:])
    assert set(guide.median()) == {"rnn.mean", "rnn.spread_l0", "rnn.spread_l1"}
    drawn = Predictive(model, guide=guide, num_samples=2)(X[:-1])
    assert drawn["y"].shape == (2, T - 1, B, 1)
    assert forecast(model, X, 2, samples=3).shape == (3, 2, B, 1)


def test_the_mean_may_be_learned() -> None:
    model = build(shared, PyroParam(torch.tensor(-1.0)))
    guide = PriorGuide(model, rest=AutoNormal)
    loss = Trace_ELBO()(model, guide)(X[:-1], X[1:])
    loss.backward()
    (raw,) = (p for name, p in model.named_parameters() if name == "rnn.mean_unconstrained")
    assert raw.grad is not None and float(raw.grad) != 0


@pytest.mark.parametrize(
    "prior, error, message",
    [
        (lambda rnn: dist.Normal(0.0, 1.0), ValueError, "must be over positive numbers"),
        (lambda rnn: dist.LogNormal(torch.zeros(H), 1.0), ValueError, "got (4,) and ()"),
        (lambda rnn: dist.Gamma(torch.ones(5), 1.0).to_event(1), ValueError, "got () and (5,)"),
        (lambda rnn: torch.tensor(0.3), TypeError, "must return a distribution"),
    ],
)
def test_what_the_function_returns_is_checked(prior: Any, error: Any, message: str) -> None:
    model = build(prior, 0.0)
    for call in (model, model.rnn):
        with pytest.raises(error, match=re.escape(message)):
            call(X)


def test_in_a_language_model(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    rnn = NoisyGRU(H, H, noise=NOISE)
    rnn.spread = PyroSample(lambda rnn: dist.LogNormal(-1.0, 0.3))
    model = LanguageModel(7, rnn)
    assert evaluate(model, torch.randint(7, (40,)), samples=2).perplexity > 1
    with pytest.raises(ValueError, match="the prior on spread_l0 cannot be described"):
        model.save_pretrained(tmp_path)
