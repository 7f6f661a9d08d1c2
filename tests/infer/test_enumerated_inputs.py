"""A discrete latent variable in the RNN's input, enumerated in parallel, with many particles."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro import Additive, Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN

T, B, CLASSES, PARTICLES = 4, 3, 5, 6


class Mixture(PyroModule):
    """A class of each sequence shifts its input."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn, self.shift, self.out = rnn, nn.Embedding(CLASSES, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("batch", B, dim=-1):
            distribution = dist.Categorical(torch.ones(CLASSES))
            k = pyro.sample("k", distribution, infer={"enumerate": "parallel"})
            z, _ = self.rnn(x + self.shift(k))
            with pyro.plate("steps", T, dim=-2):
                pyro.sample("y", dist.Normal(self.out(z)[..., 0], 0.5), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("batch", B, dim=-1):
            self.rnn.draw_noise(T, B)


@pytest.mark.parametrize("kind", [NoisyRNN, NoisyLSTM, NoisyGRU])
@pytest.mark.parametrize("noise", [Additive, Multiplicative])
@pytest.mark.parametrize("particles", [1, PARTICLES])
def test_each_particle_is_a_sum_over_the_classes(kind: Any, noise: Any, particles: int) -> None:
    """The ELBO against log Σ_k p(k) p(y | k, ε), class by class and particle by particle."""
    torch.manual_seed(0)
    rnn = kind(2, 3, noise=noise(dist.Normal(0.0, 1.0)), spread=0.4)
    model, x, y = Mixture(rnn), torch.randn(T, B, 2), torch.randn(T, B)
    drawn = []

    def guide(*args: Any) -> None:
        with poutine.trace() as traced:
            model.guide(*args)
        drawn.append(traced.trace.nodes["rnn.noise_0"]["value"])

    elbo = TraceEnum_ELBO(
        max_plate_nesting=2, num_particles=particles, vectorize_particles=particles > 1
    )
    loss = elbo.loss(model, guide, x, y)
    evidence = []
    for epsilon in drawn[-1].reshape(particles, T, B, 3):
        joint = []
        for shift in model.shift.weight:
            z, _ = rnn(x + shift, epsilon=[epsilon])
            fits = dist.Normal(model.out(z)[..., 0], 0.5).log_prob(y).sum(0)
            joint.append(fits - math.log(CLASSES))
        evidence.append(torch.stack(joint).logsumexp(0).sum())
    expected = float(torch.stack(evidence).detach().mean())
    assert -loss == pytest.approx(expected, rel=1e-4)
