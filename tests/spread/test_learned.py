"""A learned γ: a parameter above its floor, to which the objective alone drives it."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import warnings
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to

from noisin_pyro.nn.rnn import NoisyLSTM
from noisin_pyro.spread.learned import Learned
from tests.spread.spreads import UNITS, attached, lstm, read


@pytest.mark.parametrize("per, shape", [("layer", ()), ("unit", (UNITS,))])
@pytest.mark.parametrize("lower", [0.1, 0.3])
def test_a_learned_spread_is_a_parameter_above_its_floor(
    per: Any, shape: tuple[int, ...], lower: float
) -> None:
    module = attached(Learned(0.5, lower, per), torch.float64)
    constraint, event_dim = module._pyro_params["gamma"]
    assert event_dim == len(shape)
    start = torch.full(shape, 0.5, dtype=torch.float64)
    torch.testing.assert_close(module.gamma, start, rtol=1e-15, atol=0)
    assert repr(constraint) == f"GreaterThan(lower_bound={lower})"
    raw = torch.linspace(-30, 3, 12, dtype=torch.float64)
    expected = lower + raw.exp()  # γ = lower + exp(raw)
    torch.testing.assert_close(biject_to(constraint)(raw), expected, rtol=1e-15, atol=0)


def test_the_spread_stands_in_the_param_store_under_its_constraint() -> None:
    rnn = lstm(2, spread=[Learned(0.5), Learned(0.4, 0.2, "unit")])
    pyro.module("rnn", rnn)
    names = [f"rnn$$$spread_l{layer}_unconstrained" for layer in range(2)]
    parameters = dict(rnn.named_parameters())
    for layer, (lower, init) in enumerate([(0.1, 0.5), (0.2, 0.4)]):
        raw = parameters[f"spread_l{layer}_unconstrained"]
        assert names[layer] in pyro.get_param_store()
        torch.testing.assert_close(lower + raw.exp(), torch.full_like(raw, init))
    assert rnn.spread[0] is not None and rnn.spread[1] is not None
    assert rnn.spread[0].shape == () and rnn.spread[1].shape == (UNITS,)


def descend(rnn: NoisyLSTM, rate: float, steps: int) -> Tensor:
    """Gradient steps that push γ down, as the NOISIN objective does."""
    raw = dict(rnn.named_parameters())["spread_l0_unconstrained"]
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(rnn.spread[0].sum(), raw)
        with torch.no_grad():
            raw.sub_(rate * gradient)
    gamma = rnn.spread[0]
    assert gamma is not None and gamma.isfinite().all()
    return gamma


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_the_floor_holds_against_1000_steps_that_push_against_it(per: Any) -> None:
    gamma = descend(lstm(spread=Learned(0.5, 0.1, per)), 10.0, 1000)
    assert (gamma >= 0.1).all() and (gamma < 0.11).all()  # it was driven to the floor


def test_a_learned_spread_without_a_floor_warns_and_collapses() -> None:
    message = (
        "a learned spread without a floor is driven to zero, which leaves the deterministic RNN; "
        "give lower > 0 or stop on held-out data"
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        spread = Learned(0.5, lower=0)
    assert caught[0].filename == __file__  # it points at the line that asked for it
    rnn = lstm(spread=spread)
    raw = dict(rnn.named_parameters())["spread_l0_unconstrained"]
    torch.testing.assert_close(raw.exp(), torch.tensor(0.5))  # γ = exp(raw)
    assert 0 < descend(rnn, 1.0, 300).item() < 0.01


def test_a_learned_spread_with_a_floor_is_silent() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Learned(0.5), Learned(0.5, 1e-9)
    assert not caught


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"init": math.nan}, ValueError, "init must be finite and at least 0, got nan"),
        ({"init": math.inf}, ValueError, "init must be finite and at least 0, got inf"),
        ({"init": -0.3}, ValueError, "init must be finite and at least 0, got -0.3"),
        (
            {"init": 0.0},
            ValueError,
            "the learned spread must start above its floor 0.1, got 0.0; raise init or lower the "
            "floor",
        ),
        (
            {"init": 0.1},
            ValueError,
            "the learned spread must start above its floor 0.1, got 0.1; raise init or lower the "
            "floor",
        ),
        (
            {"init": 0.0, "lower": 0},
            ValueError,
            "the learned spread must start above its floor 0, got 0.0",
        ),
        ({"init": True}, TypeError, "init must be a number, got True"),
        ({"init": "0.5"}, TypeError, "init must be a number, got '0.5'"),
        ({"init": 0.5, "lower": False}, TypeError, "lower must be a number, got False"),
        (
            {"init": 0.5, "lower": -0.1},
            ValueError,
            "lower must be finite and at least 0, got -0.1",
        ),
        (
            {"init": 0.5, "lower": math.nan},
            ValueError,
            "lower must be finite and at least 0, got nan",
        ),
        (
            {"init": 0.5, "lower": math.inf},
            ValueError,
            "lower must be finite and at least 0, got inf",
        ),
        ({"init": 0.5, "per": "cell"}, ValueError, "per must be 'layer' or 'unit', got 'cell'"),
    ],
    ids=str,
)
def test_a_learned_spread_that_makes_no_sense(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Learned(**arguments)


def test_a_start_that_rounds_to_the_floor() -> None:
    spread = Learned(0.100000000001)
    assert read(spread, torch.float64) > 0.1
    with pytest.raises(
        ValueError,
        match=re.escape(
            "the learned spread must start above its floor 0.1, got 0.100000000001, which is no "
            "larger in torch.float32; raise init or lower the floor"
        ),
    ):
        attached(spread, torch.float32)


def test_learned_is_a_frozen_value() -> None:
    spread = Learned(0.5, per="unit")
    assert spread == Learned(0.5, 0.1, "unit") != Learned(0.5)
    assert pickle.loads(pickle.dumps(spread)) == copy.deepcopy(spread) == spread
    assert hash(spread) == hash(Learned(0.5, 0.1, "unit"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spread.init = 0.2  # type: ignore[misc]
