"""What a guide that is independent over steps must miss, on a linear Gaussian model.

The posterior of the noise is Gaussian with precision Λ. The best independent guide has the
variances 1/Λ_ii and misses ½ (Σ_i log Λ_ii − log det Λ). The bound of the one statistical test lies
6 standard errors out, where a normal variable lies with probability 2e-9.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noisin_pyro import SmoothingGuide
from noisin_pyro.noise.location_scale import LocationScale
from tests.helpers import linear_gaussian
from tests.infer.known_models import kalman, series

STEPS, DRAWS = 8, 20_000


@torch.no_grad()
def posterior(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, with shape (T·H,), and precision Λ of ε given y, from y = c + A ε + σ η."""
    units = 2 * len(x)
    unit = torch.eye(units, dtype=torch.float64).view(units, len(x), 2).movedim(0, 1)
    drawn = model.draw_noise(len(x), units)._replace(rnn=[unit])
    wide, _ = model.predict(x.expand(-1, units, -1), drawn=drawn)
    clean, _ = model.predict(x, sample=False)
    constant, variance = clean.mean.flatten(), clean.variance.flatten()[0]
    response = wide.mean.squeeze(-1) - constant.unsqueeze(1)  # (T, T·H)
    precision = torch.eye(units, dtype=torch.float64) + response.T @ response / variance
    shift = response.T @ (y.flatten() - constant) / variance
    return torch.linalg.solve(precision, shift), precision


def test_the_best_independent_guide_misses_what_the_docstring_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (x, y) = linear_gaussian(), series(STEPS)
    exact = float(kalman(model, x, y).sum())
    mean, precision = posterior(model, x, y)
    gap = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
    assert gap > 1.0
    guide = SmoothingGuide(model).double()
    noise: Any = model.rnn.noise[0]
    epsilon = noise.standardized(torch.zeros((), dtype=torch.float64))
    scale = precision.diagonal().rsqrt()

    def bound(mean: Tensor, scale: Tensor) -> tuple[float, float]:
        q = LocationScale(epsilon, mean.view(STEPS, 1, 2), scale.view(STEPS, 1, 2)).to_event(1)
        monkeypatch.setattr(guide, "_distributions", lambda *_: {0: q})
        with torch.no_grad():
            drawn, log_ratios = guide.propose(x, y, particles=DRAWS)
            emitted, _ = model.predict(x.expand(-1, DRAWS, -1), drawn=drawn)
            values = (emitted.log_prob(y.expand(-1, DRAWS, -1)) + log_ratios).sum(0)
        return float(values.mean()), float(values.std()) / math.sqrt(DRAWS)

    value, error = bound(mean, scale)
    assert abs(value - (exact - gap)) < 6 * error
    for worse in (bound(mean + 0.2, scale), bound(mean, 1.3 * scale), bound(mean, scale / 1.3)):
        assert worse[0] < value
