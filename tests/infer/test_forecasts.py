"""Forecasts of a real series: whether the intervals of a noisy RNN are calibrated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    NormalEmission,
    PriorGuide,
    SequenceModel,
)
from tests.helpers import NORMAL


def sunspots(train: int) -> Tensor:
    """Yearly sunspot numbers from 1700 on, their square roots standardised on the first."""
    pytest.importorskip("statsmodels", reason="needs statsmodels, which ships the series")
    from statsmodels.datasets import sunspots as data

    numbers = torch.tensor(data.load_pandas().data["SUNACTIVITY"].to_list()).sqrt()
    return (numbers - numbers[:train].mean()) / numbers[:train].std()


def forecaster(series: Tensor, noise: Any, steps: int = 300) -> Any:
    """An LSTM that predicts the next year, trained on windows of 50 years, too long."""
    rnn = NoisyLSTM(1, 16, noise=noise, spread=0.5)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(16, 1, scale=0.5))
    windows = series.unfold(0, 51, 5).T.unsqueeze(-1)
    objective = NoisinELBO()(model, PriorGuide(model))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (objective(windows[:-1], windows[1:]) / windows[1:].numel()).backward()
        optimizer.step()
    return model


@torch.no_grad()
def intervals(model: Any, series: Tensor, sample: bool) -> tuple[Tensor, float]:
    """Which years lie in the 80 % interval of 400 draws given the years before; its width."""
    draws, _ = model(series[:-1].view(-1, 1, 1).expand(-1, 400, 1), sample=sample)
    low, high = draws[..., 0].quantile(torch.tensor([0.1, 0.9]), dim=1)
    return (low <= series[1:]) & (series[1:] <= high), float((high - low).mean())


def test_intervals_by_sampling_noise_are_calibrated_where_a_deterministic_rnns_are_not() -> None:
    """One year ahead, on the 109 years after those trained on.

    Measured on six seeds: the 80 % intervals of the LSTM trained with noise cover 0.79 to 0.84
    of the years when noise is sampled and 0.73 to 0.78 on its mean path; those of the one
    trained as long without cover 0.39 to 0.60, for it has learned the past by heart (where
    they cover 0.83 to 0.91) and thinks itself sure. The standard error of a coverage of 0.8
    is 0.04 if years are independent. A linear autoregression of order 9 covers 0.81 too: this
    says that noise cures an LSTM that overfits, not that it beats a model that does not.
    """
    train = 200
    series = sunspots(train)
    noisy = forecaster(series[:train], Multiplicative(NORMAL))
    plain = forecaster(series[:train], None)
    held_out = slice(train - 1, None)
    within, width = intervals(noisy, series, True)
    coverage = float(within[held_out].double().mean())
    assert within[held_out].shape == (109,) and 0.7 < coverage < 0.92
    certain, _ = intervals(plain, series, False)
    assert float(certain[: held_out.start].double().mean()) > 0.75
    assert float(certain[held_out].double().mean()) < coverage - 0.1
    # Part of the width is the sampled noise, part the larger σ that was learned under it.
    assert width > 1.02 * intervals(noisy, series, False)[1]
