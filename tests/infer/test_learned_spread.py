"""The spread γ in training: its gradient, its place in the param store, its floor."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from noisin_pyro import Learned, NoisinELBO, NoisyRNN, PriorGuide
from tests.helpers import LENGTHS, NOISES, B, D, H, T, batch, build


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "lognormal"])
@pytest.mark.parametrize("per", ["layer", "unit"])
def test_gradient_of_the_spread(noise: str, per: Any) -> None:
    """Against a central difference with common random numbers."""
    model = build(noise, spread=Learned(0.5, per=per))
    objective, (x, y) = NoisinELBO()(model, PriorGuide(model)), batch()

    def loss() -> Tensor:
        pyro.set_rng_seed(1)
        return objective(x, y, None, LENGTHS)

    for layer in range(2):
        raw = model.rnn.get_parameter(f"spread_l{layer}_unconstrained")
        assert raw.shape == ((H,) if per == "unit" else ())
        (gradient,) = torch.autograd.grad(loss(), [raw])
        for index in range(raw.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    raw.view(-1)[index] += sign * 1e-5
                    values.append(float(loss()))
                    raw.view(-1)[index] -= sign * 1e-5
            numeric = (values[0] - values[1]) / 2e-5
            assert numeric != 0
            assert float(gradient.view(-1)[index]) == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_spread_in_the_param_store(per: Any) -> None:
    model, (x, y) = build(spread=[Learned(0.5, 0.2, per), 0.3]), batch()
    svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x, y)
    store: Any = pyro.get_param_store()
    assert "rnn.spread_l0" in store and "rnn.spread_l1" not in store
    held = store["rnn.spread_l0"]
    assert held.shape == ((H,) if per == "unit" else ())
    torch.testing.assert_close(held, model.rnn.spread[0])
    assert store._constraints["rnn.spread_l0"].lower_bound == 0.2
    assert held.unconstrained() is model.rnn.spread_l0_unconstrained


def test_a_learned_spread_can_be_lifted_to_a_prior() -> None:
    model, (x, y) = build("additive", layers=1, spread=Learned(0.5)), batch()
    moves = []
    for spread in (0.2, 0.8):
        lifted = poutine.lift(model, {"rnn.spread_l0": dist.Delta(torch.tensor(spread))})
        nodes = poutine.trace(poutine.seed(lifted, 0)).get_trace(x, y).nodes
        assert nodes["rnn.spread_l0"]["type"] == "sample"
        first = nodes["rnn.z_0"]["value"][0] - spread * nodes["rnn.noise_0"]["value"][0]
        moves.append(first)  # the clean state of the first step, which no noise has reached
    assert torch.allclose(*moves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_floor_holds_against_a_thousand_adversarial_steps(dtype: torch.dtype) -> None:
    rnn = NoisyRNN(D, H, noise=NOISES["additive"][1], spread=Learned(0.5, 0.1), dtype=dtype)
    raw = rnn.get_parameter("spread_l0_unconstrained")
    optimizer = torch.optim.SGD([raw], lr=1.0)
    for _ in range(1000):  # γ's own gradient would fade; an adversary's does not
        raw.grad = torch.ones_like(raw)
        optimizer.step()
    assert float(raw.detach()) < -900
    (spread,) = rnn.spread
    assert spread is not None and bool(spread >= torch.tensor(0.1, dtype=dtype))
    assert rnn(torch.randn(T, B, D, dtype=dtype))[0].isfinite().all()


def test_spread_without_a_floor_warns_and_collapses_in_training() -> None:
    with pytest.warns(UserWarning, match="without a floor is driven to zero.*lower > 0"):
        free = Learned(0.5, lower=0.0)
    x, y = batch()
    for spread, low, high in ((free, 0.0, 0.05), (Learned(0.5, lower=0.2), 0.2, 0.25)):
        model = build("multiplicative", layers=1, spread=spread)
        objective = NoisinELBO(4, vectorize_particles=True)(model, PriorGuide(model))
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
        for _ in range(120):
            optimizer.zero_grad()
            objective(x, y).backward()
            optimizer.step()
        assert low <= float(model.rnn.spread[0].detach()) < high
