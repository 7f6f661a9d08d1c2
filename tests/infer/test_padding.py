"""Noise past the end of a sequence: latent, it keeps its prior; observed, it does not count."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.testing import assert_close

from noisin_pyro import (
    Additive,
    FilteringELBO,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    SmoothingGuide,
)
from noisin_pyro.infer.particle_filter import filter_window
from noisin_pyro.infer.particles import Particles
from noisin_pyro.lengths import length_mask

T, B, H = 9, 4, 3
LENGTHS = torch.tensor([9, 2, 1, 3])
PADDING = ~length_mask(LENGTHS, T)
SITES: Any = ["sequence", "timestep"]


def padded_model(sites: Any) -> SequenceModel:
    rnn = NoisyRNN(1, H, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.5, sites=sites)
    return SequenceModel(nn.Identity(), rnn, NormalEmission(H, 1))


def batch() -> tuple[Any, ...]:
    return torch.randn(T, B, 1), torch.randn(T, B, 1), None, LENGTHS


class HandWritten(nn.Module):
    """A mean-field guide as one writes it down, without a mask."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = (model,)
        self.log_scale = nn.Parameter(torch.full((T, B, H), 3.0).log())

    def forward(self, *args: Any) -> None:
        rnn, scale = self.model[0].rnn, self.log_scale.exp()
        if rnn.sites == "sequence":
            with pyro.plate("time", T, dim=-2), pyro.plate("batch", B, dim=-1):
                pyro.sample("rnn.noise_0", dist.Normal(0.0, scale).to_event(1))
        else:
            with pyro.plate("batch", B, dim=-1):
                for t in range(T):
                    prior = dist.Normal(0.0, scale[t : t + 1])
                    pyro.sample(f"rnn.z_0_{t}", prior.to_event(1))


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("kind", [HandWritten, partial(AutoNormal, init_scale=3.0)])
def test_a_guide_gains_nothing_by_entropy_in_the_padding(kind: Any, sites: Any) -> None:
    """There the gradient in log s is that of the KL, s² ε²/γ² − 1 for a unit, and not −1.

    The automatic guide learns softplus⁻¹(s), so that its gradient has another size and the same
    sign. With 63 units and s = 3 a mean below 0 has a probability below 1e-12.
    """
    model, args = padded_model(sites), batch()
    guide = kind(model)
    guide(*args)
    Trace_ELBO().differentiable_loss(model, guide, *args).backward()
    gradients = [one.grad for name, one in guide.named_parameters() if "scale" in name]
    assert float(torch.cat(gradients)[PADDING].mean()) > 0


@pytest.mark.parametrize("sites", SITES)
def test_a_learned_guide_is_the_prior_in_the_padding(sites: Any) -> None:
    model, args = padded_model(sites), batch()
    guide = SmoothingGuide(model, 4, reads_state=sites == "timestep")
    for parameter in guide.parameters():
        parameter.data = torch.randn_like(parameter)
    guided = poutine.trace(guide).get_trace(*args)
    trace = poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args)
    ratios = log_density(trace) - log_density(guided)
    assert_close(ratios[PADDING], torch.zeros_like(ratios[PADDING]))
    assert bool((ratios[~PADDING].abs() > 1e-3).all())


@pytest.mark.parametrize("sites", SITES)
def test_noise_that_is_observed_counts_within_the_sequences_alone(sites: Any) -> None:
    model, args = padded_model(sites), batch()
    drawn = poutine.trace(model).get_trace(*args)
    names = [name for name in drawn.stochastic_nodes if name.startswith("rnn.")]
    values = {name: drawn.nodes[name]["value"] for name in names}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args)
    density = log_density(trace)
    assert not density[PADDING].any()
    assert_close(density[~PADDING], log_density(drawn)[~PADDING])
    assert bool(log_density(drawn)[PADDING].all())


@pytest.mark.parametrize("sites", SITES)
def test_hmc_samples_from_the_prior_in_the_padding(sites: Any) -> None:
    """HMC gives latent noise its values by ``poutine.condition``, and needs a proper density."""
    model, args = padded_model(sites), batch()
    start, potential, *_ = initialize_model(model, args)
    moved = dict(start)
    last = f"rnn.z_0_{T - 1}" if sites == "timestep" else "rnn.noise_0"
    moved[last] = start[last].clone()
    moved[last][-1, 1] += 5.0  # at the last step of a sequence that has ended
    drawn = poutine.trace(poutine.condition(model, start)).get_trace(*args)
    prior: Any = drawn.nodes[last]["fn"]
    difference = (prior.log_prob(start[last]) - prior.log_prob(moved[last])).detach()
    assert float(difference.abs().max()) > 1
    assert_close((potential(moved) - potential(start)).detach(), difference.sum())


def log_density(trace: Any) -> Tensor:
    """That of the noise, with shape (T, B)."""
    trace.compute_log_prob()
    nodes = [node for name, node in trace.nodes.items() if name.startswith("rnn.")]
    return torch.cat([node["log_prob"] for node in nodes if _is_noise(node)])


def _is_noise(node: Any) -> bool:
    return node["type"] == "sample" and not node["infer"].get("_deterministic")


def test_lengths_may_be_a_list() -> None:
    model = padded_model("sequence")
    x, y, _, lengths = batch()
    guides = PriorGuide(model), SmoothingGuide(model)
    for objective, guide in product((FilteringELBO(3), Trace_ELBO()), guides):
        losses = []
        for given in (lengths, lengths.tolist()):
            pyro.set_rng_seed(0)
            losses.append(objective(model, guide)(x, y, lengths=given))
        assert torch.equal(*losses)


def test_a_filter_weighs_no_particle_by_the_padding() -> None:
    """The weights after the window are those of the sequence by itself, with the same noise."""
    model, (x, y, _, lengths) = padded_model("sequence"), batch()
    start = Particles.start(3, B, x)
    drawn = model.draw_noise(T, 3 * B)
    padded = filter_window(model, x, y, start, lengths, ess_threshold=1e-9, drawn=drawn)
    for b, n in enumerate(lengths.tolist()):
        short = filter_window(
            model, x[:n], y[:n], start, ess_threshold=1e-9, drawn=drawn.steps(slice(0, n))
        )
        assert_close(padded.particles.log_weights[:, b], short.particles.log_weights[:, b])
