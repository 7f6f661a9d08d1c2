"""Averages over noisy RNNs: which predictive distribution they estimate.

All masks of a Bernoulli noise are enumerated, so nothing here is random.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from noisin_pyro import SequenceModel
from noisin_pyro.infer.particle_filter import filter_window
from noisin_pyro.infer.particles import Particles
from tests.infer.known_models import enumerated, masked_tanh

X = torch.ones(3, 1, 1, dtype=torch.float64)
Y = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64).view(3, 1, 1)


def conditionals(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(y_t | y_<t) exactly and log of the prior average of p(y_t | z_t), with shape (T,)."""
    log_probs = enumerated(model, X, Y)
    average = math.log(log_probs.shape[1])
    joint = log_probs.cumsum(0).logsumexp(1) - average
    return joint.diff(prepend=joint.new_zeros(1)), log_probs.logsumexp(1) - average


def test_the_average_is_the_models_own_predictive_where_noise_reaches_no_later_step() -> None:
    exact, average = conditionals(masked_tanh("output"))
    torch.testing.assert_close(exact, average, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "least"),
    [
        (masked_tanh("both"), 0.5),
        (masked_tanh("recurrence"), 0.5),
        (masked_tanh("output", 2, 1), 1e-3),
    ],
    ids=["both", "recurrence", "two layers"],
)
def test_elsewhere_it_is_that_of_another_model(model: SequenceModel, least: float) -> None:
    """With two layers the noise of the lower one reaches the recurrence of the upper one."""
    exact, average = conditionals(model)
    assert float(exact[0]) == pytest.approx(float(average[0]), rel=1e-12)  # there is no past
    assert float((exact - average)[1:].abs().max()) > least


def test_weights_of_a_particle_filter_mend_it() -> None:
    """64 particles that are the 64 paths themselves have the exact conditionals."""
    model = masked_tanh("both")
    exact, _ = conditionals(model)
    masks = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    drawn = model.draw_noise(3, 64)
    drawn = drawn._replace(rnn=[masks.view(64, 3, 2).movedim(0, 1)])
    with torch.no_grad():
        found = filter_window(
            model,
            X,
            Y,
            Particles.start(64, 1, exact),
            drawn=drawn,
            ess_threshold=0.0,
        )
    torch.testing.assert_close(found.log_probs.squeeze(1), exact, rtol=1e-10, atol=1e-10)
