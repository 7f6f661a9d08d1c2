"""Forecasts with intervals: how much of what comes lies in them, with noise and without.

``python examples/forecast_intervals.py`` takes a minute or two. The series are seasonal, with a
phase and a level of their own and errors that carry over to the next step; twenty are for training.
The intervals are from the 5 % to the 95 % quantile of 100 forecasts of 12 steps.
"""

import math
import sys

import pyro.distributions as dist
import torch
from torch import nn

from noisin_pyro import (
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    forecast,
)

PAST, AHEAD = 60, 12


def series(count):
    """Monthly series, with shape (steps, count, 1)."""
    t = torch.arange(PAST + AHEAD).unsqueeze(1)
    y = torch.randn(count) + (2 * math.pi * (t / 12 + torch.rand(count))).sin()
    error = torch.zeros(count)
    for step in y:
        error = 0.7 * error + 0.3 * torch.randn(count)
        step += error
    return y.unsqueeze(-1)


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
torch.manual_seed(1)
train, valid, test = series(20), series(100), series(400)


def score(model, data):
    """(mean absolute error of the median, share in the 90 % interval) of 12-step forecasts."""
    drawn = forecast(model, data[:PAST], AHEAD, samples=100)
    low, median, high = drawn.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
    truth = data[PAST:]
    return (truth - median).abs().mean().item(), (
        (low < truth) & (truth < high)
    ).float().mean().item()


for name, noise in (("plain", None), ("noisy", Multiplicative(dist.Normal(0.0, 1.0)))):
    torch.manual_seed(1)
    rnn = NoisyLSTM(1, 48, noise=noise, spread=0.3)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(48, 1))
    objective = NoisinELBO()(model, PriorGuide(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scores = []
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        loss = objective(train[:-1], train[1:])
        (loss / train[1:].numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if epoch % 40 == 0 or epoch == epochs:
            scores.append((*score(model, valid), *score(model, test), epoch))
    for when, (_, _, error, inside, epoch) in (("best", min(scores)), ("last", scores[-1])):
        print(f"{name}, {when} epoch {epoch}: {inside:.0%} inside, mean absolute error {error:.3f}")
