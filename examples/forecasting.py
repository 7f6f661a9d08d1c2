"""Forecasts with intervals: how many sunspots in each of the next eleven years?

``python examples/forecasting.py`` takes some ten seconds and needs statsmodels, for its data. A
noisy GRU reads the years up to now, and a Normal emission predicts the next one. ``forecast`` draws
whole futures, whose quantiles are the intervals. How often they contain the truth is checked on
years not trained on, also for the same network without noise.
"""

import sys

import pyro
import pyro.distributions as dist
import statsmodels.api as sm
import torch
from torch import nn

from noisin_pyro import (
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    forecast,
)

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
HISTORY, HORIZON, END = 33, 11, 230  # a cycle takes about eleven years; the years to 1929 train

counts = torch.tensor(sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].values).float()
series = counts.sqrt()  # the variance of a count grows with it
mean, scale = series[:END].mean(), series[:END].std()
series = ((series - mean) / scale)[:, None, None]  # (T, 1, 1)

pieces = torch.cat([series[t : t + HISTORY + 1] for t in range(0, END - HISTORY, 4)], 1)
x, y = pieces[:-1], pieces[1:]  # (33, 50, 1)


def fit(noise):
    pyro.set_rng_seed(0)
    rnn = NoisyGRU(1, 32, noise=noise, spread=0.5)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(32, 1))
    objective = NoisinELBO()(model, PriorGuide(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        (objective(x, y) / y.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


# From every year that has eleven after it: 500 futures, the noise drawn anew in each.
starts = range(END, len(series) - HORIZON + 1)
past = torch.cat([series[t - HISTORY : t] for t in starts], 1)
future = torch.cat([series[t : t + HORIZON] for t in starts], 1)  # (11, starts, 1)
for name, noise in {"no noise": None, "noise": Multiplicative(dist.Normal(0.0, 1.0))}.items():
    model = fit(noise)
    drawn = forecast(model, past, HORIZON, samples=500)  # (500, 11, starts, 1)
    for level in (0.5, 0.8, 0.95):
        low, high = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]), 0)
        held = ((low <= future) & (future <= high)).float().mean()
        print(f"{name}: the {level:.0%} intervals hold {held:.0%} of {future.numel()} values")

print("\nwith noise, from the last year: the sunspots to come (median, 80 % interval)")
coming = (forecast(model, series[-HISTORY:], HORIZON, samples=500) * scale + mean).clamp(min=0) ** 2
for year, quantiles in enumerate(coming.quantile(torch.tensor([0.1, 0.5, 0.9]), 0)[..., 0, 0].T):
    low, median, high = quantiles.tolist()
    print(f"{2009 + year}  {median:5.0f}  {low:5.0f} to {high:.0f}")
