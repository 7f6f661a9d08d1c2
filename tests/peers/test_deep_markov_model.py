"""A deep Markov model after Pyro's example, whose guide reads the future with a noisy RNN.

Krishnan, Shalit and Sontag (2017), https://arxiv.org/abs/1609.09869; Pyro's example is
https://pyro.ai/examples/dmm.html.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from noisin_pyro import Additive, Learned, NoisyRNN, from_torch

T, B, X, Z, H = 6, 8, 5, 2, 7


class DeepMarkov(nn.Module):
    """Latent states with a gated transition, Bernoulli notes, and a guide that looks ahead."""

    def __init__(self, rnn: nn.RNN) -> None:
        super().__init__()
        self.transition, self.emission = nn.Linear(Z, 2 * Z), nn.Linear(Z, X)
        self.combine, self.posterior = nn.Linear(Z, H), nn.Linear(H, 2 * Z)
        self.start = nn.Parameter(torch.zeros(H))
        self.rnn: Any = rnn

    def model(self, notes: Tensor) -> None:
        pyro.module("dmm", self)
        with pyro.plate("sequences", B):
            z = notes.new_zeros(B, Z)
            for t, observed in enumerate(notes):
                mean, scale = self.transition(z).chunk(2, -1)
                prior: Any = dist.Normal(mean, nn.functional.softplus(scale))
                z = pyro.sample(f"z_{t}", prior.to_event(1))
                note: Any = dist.Bernoulli(logits=self.emission(z))
                pyro.sample(f"x_{t}", note.to_event(1), obs=observed)

    def guide(self, notes: Tensor) -> None:
        pyro.module("dmm", self)
        start = self.start.expand(1, B, H).contiguous()
        ahead = self.rnn(notes.flip(0), start)[0].flip(0)
        with pyro.plate("sequences", B):
            z = notes.new_zeros(B, Z)
            for t, future in enumerate(ahead):
                hidden = (self.combine(z).tanh() + future) / 2
                mean, scale = self.posterior(hidden).chunk(2, -1)
                posterior: Any = dist.Normal(mean, nn.functional.softplus(scale))
                z = pyro.sample(f"z_{t}", posterior.to_event(1))


def build(noisy: bool, **options: Any) -> DeepMarkov:
    torch.manual_seed(0)
    dmm = DeepMarkov(nn.RNN(X, H))
    if noisy:
        noise = Additive(dist.Normal(0.0, 1.0))
        dmm.rnn = from_torch(dmm.rnn, noise=noise, sites=None, **options)
    return dmm


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_without_its_noise_it_is_the_same_program(elbo: Any) -> None:
    notes = torch.bernoulli(torch.full((T, B, X), 0.3))
    losses = []
    for dmm in (build(False), build(True).eval()):
        pyro.clear_param_store()
        torch.manual_seed(1)
        loss = elbo().differentiable_loss(dmm.model, dmm.guide, notes)
        losses.append([loss, *torch.autograd.grad(loss, dmm.rnn.weight_hh_l0)])
    for ours, theirs in zip(*losses):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_it_trains_with_noise_in_its_guide(elbo: Any) -> None:
    """And the noise is no part of the objective: only the latent states have sites."""
    notes = torch.bernoulli(torch.full((T, B, X), 0.1))
    dmm = build(True, spread=Learned(0.3))
    assert isinstance(dmm.rnn, NoisyRNN)
    sites = poutine.trace(dmm.guide).get_trace(notes)
    stochastic = {name for name in sites.stochastic_nodes if name != "sequences"}
    assert stochastic == {f"z_{t}" for t in range(T)}
    before = dmm.rnn.weight_hh_l0.detach().clone()
    pyro.clear_param_store()
    svi = SVI(dmm.model, dmm.guide, pyro.optim.Adam({"lr": 0.02}), elbo())
    losses = [svi.step(notes) for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not torch.equal(before, dmm.rnn.weight_hh_l0)
