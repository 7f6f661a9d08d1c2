"""The spread γ of a layer: constants, tensors, parameters; one for each layer; set at any time."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.per_layer import per_layer
from noisin_pyro.nn.rnn import NoisyLSTM
from noisin_pyro.noise.affine import Additive
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.trainable import spread_parameters
from tests.spread.spreads import UNITS, attached, lstm, read


@pytest.mark.parametrize("spread", [0.3, 2, np.float32(0.25), np.float64(0.3), 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_is_a_constant(spread: Any, dtype: torch.dtype) -> None:
    value = read(spread, dtype)
    assert torch.equal(value, torch.tensor(float(spread), dtype=dtype))
    assert not value.requires_grad


@pytest.mark.parametrize("spread", [0.0, -0.3, math.nan, math.inf, -math.inf, 0, -1])
def test_a_number_must_be_positive_and_finite(spread: float) -> None:
    message = (
        f"spread must be positive and finite, got {spread}; use noise=None for a deterministic RNN"
    )
    for build in (attached, lambda value: lstm(spread=value)):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(spread)


@pytest.mark.parametrize("spread", [1e-60, 1e60])
def test_a_number_must_be_positive_and_finite_in_its_dtype(spread: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"positive and finite, got {spread};")):
        attached(spread, torch.float32)
    assert read(spread, torch.float64) == spread


@pytest.mark.parametrize("spread", [True, False, None, "0.5", 0.5j, td.Gamma(2.0, 2.0), Learned])
def test_a_spread_of_another_kind(spread: Any) -> None:
    message = (
        "spread must be a number, a tensor, Learned(...) or a distribution from "
        f"pyro.distributions, got {spread!r}"
    )
    for build in (attached, lambda value: lstm(spread=value)):
        with pytest.raises(TypeError, match=re.escape(message)):
            build(spread)


def test_one_value_serves_all_layers() -> None:
    assert per_layer(0.5, 3, "spread") == [0.5, 0.5, 0.5]
    assert per_layer((0.5, 0.3), 2, "spread") == [0.5, 0.3]
    assert per_layer("ab", 2, "spread") == ["ab", "ab"]  # a name is one value
    assert per_layer(None, 2, "noise") == [None, None]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_spreads_as_layers(count: int) -> None:
    message = f"spread needs one value or one for each of the 2 layers, got {count}"
    with pytest.raises(ValueError, match=re.escape(message)):
        lstm(2, spread=[0.5] * count)
    with pytest.raises(ValueError, match=re.escape(message.replace("spread", "noise"))):
        NoisyLSTM(3, UNITS, 2, noise=[Additive(dist.Normal(0.0, 1.0))] * count)


def test_each_layer_has_its_own_spread() -> None:
    rnn = lstm(3, spread=[0.5, Learned(0.3), dist.LogNormal(-1.0, 0.1)])
    first, second, _ = rnn.spread
    assert first == torch.tensor(0.5) and not first.requires_grad
    torch.testing.assert_close(second, torch.tensor(0.3))
    assert second.requires_grad
    names = [name for name, _ in rnn.named_parameters() if "spread" in name]
    assert names == ["spread_l1_unconstrained"]


def test_layers_do_not_share_a_learned_spread() -> None:
    rnn = lstm(2, spread=Learned(0.5))
    first, second = (dict(rnn.named_parameters())[f"spread_l{i}_unconstrained"] for i in range(2))
    assert first is not second and torch.equal(first, second)


def test_a_bad_spread_of_any_layer_is_found() -> None:
    with pytest.raises(ValueError, match="spread must be positive and finite, got -1.0"):
        lstm(2, spread=[0.5, -1.0])


@pytest.mark.parametrize("shape", [(), (UNITS,)])
def test_a_tensor_is_a_buffer(shape: tuple[int, ...]) -> None:
    value = torch.linspace(0.2, 0.8, UNITS) if shape else torch.tensor(0.4)
    rnn = lstm(2, spread=value)
    assert [buffer for buffer, _ in rnn.named_buffers()] == ["spread_l0", "spread_l1"]
    assert not any("spread" in name for name, _ in rnn.named_parameters())
    assert all(torch.equal(spread, value) for spread in rnn.spread)
    value.add_(1.0)  # the user's tensor is not ours
    assert all(float(spread.max()) < 1 for spread in rnn.spread)
    z = torch.stack([rnn(torch.randn(2, 1, 3))[0] for _ in range(3)])
    assert z.std(0).min() > 0


def test_a_parameter_is_trained_by_its_owner() -> None:
    gamma = torch.nn.Parameter(torch.full((UNITS,), 0.4))
    rnn = lstm(2, spread=gamma)
    assert rnn.spread_l0 is gamma and rnn.spread_l1 is gamma
    rnn(torch.randn(5, 2, 3))[0].square().sum().backward()
    assert gamma.grad is not None and gamma.grad.abs().min() > 0


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.tensor([0.5, 0.5]), "a spread per unit must have shape (4,)"),
        (torch.tensor([0.5, 0.5, -0.5, 0.5]), "spread must be positive and finite, got [0.5, 0.5"),
        (torch.ones(1, UNITS), "floating-point with shape () or (hidden_size,)"),
        (torch.tensor(1), "floating-point with shape () or (hidden_size,)"),
    ],
)
def test_a_tensor_that_makes_no_sense(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        lstm(spread=value)


@pytest.mark.parametrize("computed", [False, True])
def test_a_tensor_that_requires_a_gradient_is_refused(computed: bool) -> None:
    """As a constant it would lose the gradient without a word; another RNN's γ is one too."""
    gamma = lstm(spread=Learned(0.5)).spread[0] if computed else torch.tensor(0.5).requires_grad_()
    assert gamma is not None
    with pytest.raises(ValueError, match="must be an nn.Parameter, got 0.5, whose gradient would"):
        lstm(spread=gamma)
    assert lstm(spread=gamma.detach()).spread[0] == 0.5


def test_a_spread_is_set_at_any_time() -> None:
    """Which is how one writes a schedule; what makes no sense is refused, and changes nothing."""
    rnn = lstm(2, spread=[0.3, Learned(0.5)])
    x = torch.randn(50, 8, 3)
    with torch.no_grad():
        for gamma in (0.01, 1.0):
            rnn.spread = gamma
            torch.manual_seed(0)
            z = rnn(x)[0]
            difference = (z - rnn(x, sample=False)[0]).square().mean().sqrt()
            assert 0.5 * gamma < difference < 2 * gamma
    rnn.spread = [Learned(0.4), 0.2]
    assert [name for name, _ in rnn.named_parameters() if "spread" in name] == [
        "spread_l0_unconstrained"
    ]
    rnn.spread_l0 = 0.6
    for wrong in (0, -0.3, math.inf):
        with pytest.raises(ValueError, match="spread must be positive and finite"):
            rnn.spread_l1 = wrong
    with pytest.raises(ValueError, match="one value or one for each of the 2 layers, got 3"):
        rnn.spread = [0.1, 0.2, 0.3]
    assert [float(spread) for spread in rnn.spread] == pytest.approx([0.6, 0.2])
    with pytest.raises(AttributeError, match="NoisyLSTM has no noisy layer with a 'spread_l2'"):
        rnn.spread_l2 = 0.5


def test_the_callers_tensor_is_copied() -> None:
    given = torch.full((UNITS,), 0.3)
    rnn = NoisyLSTM(3, UNITS, noise=Additive(dist.Normal(0.0, 1.0)), spread=given)
    given.fill_(9.0)
    rnn.reset_parameters()
    assert float(rnn.spread[0].mean()) == pytest.approx(0.3)


@pytest.mark.parametrize("make", ["reset", "skip_init", "to_empty"])
def test_reset_parameters_puts_a_spread_back(make: str) -> None:
    options: dict[str, Any] = {"noise": Additive(dist.Normal(0.0, 1.0))}
    options["spread"] = [Learned(0.15), torch.full((UNITS,), 0.7), 0.3]
    if make == "skip_init":
        rnn: Any = torch.nn.utils.skip_init(NoisyLSTM, 3, UNITS, 3, **options)
    else:
        rnn = NoisyLSTM(3, UNITS, 3, **options)
        with torch.no_grad():
            rnn.spread_l0_unconstrained.add_(2.0)
            rnn.spread_l1.add_(2.0)
            rnn.weight_hh_l0.add_(100.0)
        rnn = rnn.to_empty(device="cpu") if make == "to_empty" else rnn
    rnn.reset_parameters()
    values = [float(spread.detach().mean()) for spread in rnn.spread]
    assert values == pytest.approx([0.15, 0.7, 0.3])
    bound = UNITS**-0.5
    weights = [p for name, p in rnn.named_parameters() if "spread" not in name]
    assert all(weight.abs().max() <= bound for weight in weights)
    assert rnn.weight_hh_l0.std() > 0.3 * bound
    torch.manual_seed(3)
    rnn.reset_parameters()
    torch.manual_seed(3)
    plain = torch.nn.LSTM(3, UNITS, 3)
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, getattr(rnn, name))


def test_spread_parameters_are_those_that_weight_decay_should_leave() -> None:
    rnn = lstm(3, spread=[Learned(0.5), 0.3, torch.nn.Parameter(torch.tensor(0.4))])
    found = list(spread_parameters(torch.nn.Sequential(rnn)))
    assert found == [rnn.spread_l0_unconstrained, rnn.spread_l2]
    options: Any = {"input_noise": Additive(dist.Normal(0.0, 1.0)), "input_spread": Learned(0.2)}
    model = SequenceModel(torch.nn.Identity(), rnn, lambda z: dist.Normal(z, 1.0), **options)
    assert list(spread_parameters(model)) == [model.input_spread_unconstrained, *found]


def test_a_spread_that_layers_share_is_listed_once() -> None:
    """Or torch would warn of a parameter group with duplicates."""
    gamma = torch.nn.Parameter(torch.tensor(0.3))
    assert list(spread_parameters(lstm(2, spread=gamma))) == [gamma]
