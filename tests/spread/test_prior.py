"""A random γ: a sample site over positive numbers, with a draw for each particle."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro.poutine.util import prune_subsample_sites
from torch import nn

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.emissions import NormalEmission
from noisin_pyro.nn.rnn import NoisyGRU
from noisin_pyro.noise.affine import Additive
from tests.spread.spreads import UNITS, attached, lstm


@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(-1.0, 0.3),
        dist.Gamma(2.0, 4.0),
        dist.HalfNormal(1.0),
        dist.Uniform(0.1, 1.0),
        dist.Gamma(2.0, 4.0).expand([UNITS]).to_event(1),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [td.ExpTransform()]),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_prior_is_a_sample_site(prior: Any) -> None:
    assert attached(prior)._pyro_samples["gamma"] is prior
    rnn = lstm(spread=prior)
    trace = pyro.poutine.trace(rnn).get_trace(torch.zeros(2, 1, 3))
    site = next(name for name in trace.nodes if name.endswith("spread_l0"))
    assert trace.nodes[site]["type"] == "sample"
    assert trace.nodes[site]["value"].shape == prior.event_shape  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "prior, support",
    [
        (dist.Normal(0.5, 0.1), "Real()"),
        (dist.Uniform(-0.5, 1.0), "Interval(lower_bound=-0.5, upper_bound=1.0)"),
        (dist.Normal(torch.zeros(UNITS), 1.0).to_event(1), "IndependentConstraint(Real(), 1)"),
        (dist.Poisson(1.0), "IntegerGreaterThan(lower_bound=0)"),
        (dist.Bernoulli(0.5), "Boolean()"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_prior_must_be_over_positive_numbers(prior: Any, support: str) -> None:
    message = (
        f"a prior on the spread must be over positive numbers, got {prior} with support {support}; "
        "use for example dist.LogNormal or dist.Gamma"
    )
    for build in (attached, lambda value: lstm(spread=value)):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(prior)


@pytest.mark.parametrize(
    "shape, got", [((UNITS,), "(4,) and ()"), ((UNITS + 1, 0), "() and (5,)")], ids=str
)
def test_a_prior_is_per_layer_or_per_unit(shape: tuple[int, ...], got: str) -> None:
    prior = dist.Gamma(2.0, 4.0).expand(shape[:1])
    prior = prior.to_event(1) if len(shape) > 1 else prior
    message = (
        f"a prior on the spread must have batch shape () and event shape () or (4,), got {got}; "
        "use .expand([hidden_size]).to_event(1) for one spread per unit"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attached(prior)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("units", [(), (UNITS,)], ids=["per layer", "per unit"])
def test_a_prior_of_another_dtype(units: tuple[int, ...], sites: Any) -> None:
    distribution = dist.LogNormal(torch.zeros(units, dtype=torch.float64), 1.0).to_event(len(units))
    rnn = lstm(2, spread=distribution, sites=sites)
    assert all(spread.dtype == torch.float32 for spread in rnn.spread)
    output, (h, c) = rnn(torch.randn(5, 2, 3))
    assert output.dtype == h.dtype == c.dtype == torch.float32
    output.sum().backward()


@pytest.mark.parametrize("units", [(), (UNITS,)], ids=["per layer", "per unit"])
def test_a_prior_of_another_device(units: tuple[int, ...]) -> None:
    """As on a GPU: ``rnn.to(device)`` does not move a distribution."""
    distribution = dist.LogNormal(torch.zeros(units), 1.0).to_event(len(units))
    assert all(spread.is_meta for spread in lstm(2, spread=distribution).to("meta").spread)


@pytest.mark.parametrize("particles", [4, 5])  # neither as many as the steps, and as many
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("prior", ["per layer", "per unit"])
@pytest.mark.parametrize("units", [1, 2])
def test_each_particle_has_its_own_draw_in_all_steps(
    units: int, prior: str, sites: Any, particles: int
) -> None:
    """Also where a layer has one unit, and γ as many dimensions as units would give it."""
    distribution = dist.LogNormal(0.0, 1.0)
    distribution = (
        distribution if prior == "per layer" else distribution.expand([units]).to_event(1)
    )
    noise = Additive(dist.Normal(0.0, 1.0))
    rnn = NoisyGRU(units, units, noise=noise, spread=distribution, sites=sites)
    model = SequenceModel(
        nn.Identity(), rnn, NormalEmission(units, 1), input_noise=noise, input_spread=distribution
    ).double()
    x, y = (torch.randn(5, 3, size, dtype=torch.float64) for size in (units, 1))
    with pyro.plate("particles", particles, dim=-3):
        together = prune_subsample_sites(pyro.poutine.trace(model).get_trace(x, y))
    together.compute_log_prob()
    for one in range(particles):
        values = {name: together.nodes[name]["value"][one] for name in together.stochastic_nodes}
        for name in ("input_spread", "rnn.spread_l0"):
            values[name] = values[name].reshape(distribution.event_shape)
        alone = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(x, y)
        alone.compute_log_prob()
        torch.testing.assert_close(
            together.nodes["y"]["log_prob"][one], alone.nodes["y"]["log_prob"]
        )
