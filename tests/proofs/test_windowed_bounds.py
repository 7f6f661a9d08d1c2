"""Bounds of windows: with a carried draw of the prior they add up to no bound of the whole."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from noisin_pyro import FilteringELBO, NoisinELBO, PriorGuide
from tests.helpers import linear_gaussian
from tests.infer.known_models import kalman

STREAMS, REPEATS, ERRORS = 400, 24, 8.0
"""Copies of the series, and repeats for a standard error; a t variable with 23 degrees of freedom
lies 8 standard errors out with probability 4e-8."""


def turning() -> tuple[Any, Tensor, Tensor, float]:
    """Observations that leap where a window ends, against what the model expects; log p(y)."""
    model = linear_gaussian(spread=0.6)
    x = torch.zeros(8, 1, 1, dtype=torch.float64)
    y = torch.tensor([2.0] * 4 + [-1.5] * 4, dtype=torch.float64).view(-1, 1, 1)
    return model, x, y, float(kalman(model, x, y).sum())


def windowed(bound: Any, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean and standard error of the two windows' sum for one series."""
    values = []
    x, y = x.expand(-1, STREAMS, -1), y.expand(-1, STREAMS, -1)
    with torch.no_grad():
        for _ in range(REPEATS):
            first, state = bound(x[:4], y[:4], None)
            second, _ = bound(x[4:], y[4:], state)
            values.append(float(first + second) / STREAMS)
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std()) / math.sqrt(REPEATS)


def test_importance_weighted_windows_from_a_draw_of_the_prior_exceed_the_evidence() -> None:
    """``RenyiELBO`` on windows: Σ E [log p(y_window | z)] knows nothing of the windows before."""
    model, x, y, exact = turning()
    guide = PriorGuide(model)
    renyi = RenyiELBO(alpha=0.0, num_particles=600, vectorize_particles=True, max_plate_nesting=2)

    def bound(x: Tensor, y: Tensor, state: Any) -> tuple[float, Any]:
        loss = renyi.loss(model, guide, x, y, state)
        return -loss, model.predict(x, state, sample=True)[1]

    mean, error = windowed(bound, x, y)
    assert mean - exact > ERRORS * error, (mean, exact)


def test_carried_particles_keep_the_bound() -> None:
    model, x, y, exact = turning()
    objective = FilteringELBO(200)(model, PriorGuide(model))

    def bound(x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        loss, state = objective.with_state(x, y, state)
        return -loss, state

    mean, error = windowed(bound, x, y)
    assert mean < exact - error and exact - mean < 1.0, (mean, exact)


def test_windows_of_noisin_are_noisin() -> None:
    """Its terms are one step each, so a carried draw changes nothing."""
    model, x, y, _ = turning()
    objective = NoisinELBO()(model, PriorGuide(model))

    def bound(x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        loss, state = objective.with_state(x, y, state)
        return -loss, state

    mean, error = windowed(bound, x, y)
    wide = [part.expand(-1, 20_000, -1) for part in (x, y)]
    with torch.no_grad():
        whole = -float(objective(*wide)) / 20_000
    assert abs(mean - whole) < ERRORS * math.sqrt(2) * error
