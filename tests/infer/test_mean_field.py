"""TraceMeanField_ELBO, which takes each KL in closed form where torch knows it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    MeanParameterized,
    NoisinELBO,
    NoisyRNN,
    PriorGuide,
)
from tests.helpers import (
    LENGTHS,
    NORMAL,
    D,
    H,
    K,
    assert_all_close,
    batch,
    build,
    site_kinds,
    value_and_gradients,
)


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "lattice", "gamma"])
@site_kinds
@pytest.mark.parametrize("vectorized", [False, True], ids=["in turn", "one batch"])
def test_mean_field_elbo_is_noisin_elbo(noise: str, sites: str, vectorized: bool) -> None:
    """Site by site the KL of the prior from itself is nothing, whether torch knows it or not.

    Where it knows none (every Additive and Multiplicative noise), Pyro takes the difference of
    two equal log-probabilities, so the value is equal to the last bit; the gradients are up to
    the rounding of terms that cancel, large where a state is near 0 and so is the scale of z.
    Padding counts for nothing in either.
    """
    model = build(noise, sites=sites, input_noise=Additive(NORMAL), input_spread=Learned(0.3))
    guide, (x, y) = PriorGuide(model), batch()
    options: dict[str, Any] = {"num_particles": 3, "vectorize_particles": vectorized}
    for lengths in (None, LENGTHS):
        mean_field, noisin = (
            value_and_gradients(model.parameters(), lambda: objective(x, y, None, lengths))  # noqa: B023
            for objective in (
                TraceMeanField_ELBO(**options, max_plate_nesting=2)(model, guide),
                NoisinELBO(**options)(model, guide),
            )
        )
        assert torch.equal(mean_field[0], noisin[0])
        assert all(bool(gradient.any()) for gradient in noisin)
        assert_all_close(mean_field, noisin, 1e-8)


def test_mean_field_elbo_refuses_a_noise_without_a_pathwise_gradient() -> None:
    """Pyro's own rule; NoisinELBO and Trace_ELBO have the score-function term."""
    rnn = NoisyRNN(
        D, H, nonlinearity="sigmoid", noise=MeanParameterized(lambda m, s: dist.Bernoulli(m))
    )
    model = LanguageModel(K, rnn)
    with pytest.raises(NotImplementedError, match="fully reparameterized"):
        TraceMeanField_ELBO()(model, PriorGuide(model))(*batch())
