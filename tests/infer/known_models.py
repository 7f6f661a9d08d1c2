"""The exact evidence of two models: by the Kalman filter, and by enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from noisin_pyro import Multiplicative, NoisyRNN, NormalEmission, SequenceModel
from tests.helpers import set_parameters


@torch.no_grad()
def kalman(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """log p(y_t | y_<t) of the linear Gaussian model for one series, with shape (T,)."""
    rnn, emission = model.rnn, model.emission
    w, u, v = rnn.weight_hh_l0, rnn.weight_ih_l0, emission.weight
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    log_probs = []
    for t in range(len(x)):
        mean = w @ mean + u @ x[t].view(1)
        cov = w @ cov @ w.T + rnn.spread[0].square() * torch.eye(2, dtype=torch.float64)
        variance = v @ cov @ v.T + (2 * emission.log_scale).exp()
        predicted = torch.distributions.Normal(v @ mean + emission.bias, variance.sqrt().view(1))
        log_probs.append(predicted.log_prob(y[t].view(1)).sum())
        gain = (cov @ v.T / variance).view(2)
        mean = mean + gain * (y[t].view(1) - v @ mean - emission.bias)
        cov = cov - gain.outer(gain) * variance.view(())
    return torch.stack(log_probs)


def series(steps: int) -> tuple[Tensor, Tensor]:
    """Inputs and observations with shape (T, 1, 1), the same whatever the seed."""
    time = torch.arange(steps, dtype=torch.float64).view(-1, 1, 1)
    return (0.7 * time).sin(), 1.2 * (0.5 * time).cos() + 0.8


def masked_tanh(
    noise_to: Any = "both", layers: int = 1, units: int = 2, spread: Any = 1.0
) -> SequenceModel:
    """A tanh RNN with Bernoulli(1/2) masks and a Gaussian emission; with γ = 1 it is dropout."""
    rnn = NoisyRNN(
        1,
        units,
        layers,
        bias=False,
        noise=Multiplicative(dist.Bernoulli(0.5)),
        spread=spread,
        noise_to=noise_to,
    )
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(units, 1, scale=0.5)).double()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "weight" in name:
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = 1.5 * draw
    set_parameters(model, {"emission.bias": [0.1], "emission.log_scale": [math.log(0.5)]})
    return model


@torch.no_grad()
def enumerated(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """log p(y_t | z_t) on every path of masks of one series, with shape (T, paths).

    All paths are equally likely. They run side by side as one batch, through the torch module
    written out.
    """
    rnn, steps = model.rnn, len(x)
    units, layers = rnn.hidden_size, rnn.num_layers
    signs = list(itertools.product([-1.0, 1.0], repeat=steps * layers * units))
    epsilon = torch.tensor(signs, dtype=torch.float64).view(-1, layers, steps, units)
    z = [epsilon.new_zeros(len(signs), units) for _ in range(layers)]
    log_probs = []
    for t in range(steps):
        below = x[t].view(1, 1).expand(len(signs), 1)
        for layer in range(layers):
            w_ih, w_hh = (getattr(rnn, f"weight_{part}_l{layer}") for part in ("ih", "hh"))
            h = torch.tanh(below @ w_ih.T + z[layer] @ w_hh.T)
            noisy = h * (1 + rnn.spread[layer] * epsilon[:, layer, t])
            z[layer] = h if rnn.noise_to == "output" else noisy
            below = h if rnn.noise_to == "recurrence" else noisy
        mean = below @ model.emission.weight.T + model.emission.bias
        predicted = torch.distributions.Normal(mean, model.emission.log_scale.exp())
        log_probs.append(predicted.log_prob(y[t].view(1)).sum(-1))
    return torch.stack(log_probs)
