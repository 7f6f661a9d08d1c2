"""The spread γ: a constant, a constrained parameter or a random variable of a layer."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro.nn import PyroModule
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import biject_to

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.emissions import NormalEmission
from noisin_pyro.nn.rnn import NoisyGRU, NoisyLSTM
from noisin_pyro.noise.affine import Additive
from noisin_pyro.noise.spread import Learned, as_spread, per_layer, spread_parameters

UNITS = 4


def attached(spread: Any, dtype: torch.dtype = torch.float32) -> PyroModule:
    """A module with γ as its attribute ``gamma``."""
    module = PyroModule()
    as_spread(spread).attach(module, "gamma", UNITS, torch.empty((), dtype=dtype))
    return module


def read(spread: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """γ as a layer reads it."""
    return as_spread(spread).read(attached(spread, dtype), "gamma", torch.empty((), dtype=dtype))


def lstm(layers: int = 1, **options: Any) -> NoisyLSTM:
    return NoisyLSTM(3, UNITS, layers, noise=Additive(dist.Normal(0.0, 1.0)), **options)


# ---------------------------------------------------------------- fixed


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


# ---------------------------------------------------------------- learned


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


# ---------------------------------------------------------------- a prior


@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(-1.0, 0.3),
        dist.Gamma(2.0, 4.0),
        dist.HalfNormal(1.0),
        dist.Uniform(0.1, 1.0),
        dist.Gamma(2.0, 4.0).expand([UNITS]).to_event(1),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [td.ExpTransform()]),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_prior_is_a_sample_site(prior: Any) -> None:
    assert attached(prior)._pyro_samples["gamma"] is prior
    rnn = lstm(spread=prior)
    trace = pyro.poutine.trace(rnn).get_trace(torch.zeros(2, 1, 3))
    site = next(name for name in trace.nodes if name.endswith("spread_l0"))
    assert trace.nodes[site]["type"] == "sample"
    assert trace.nodes[site]["value"].shape == prior.event_shape  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "prior, support",
    [
        (dist.Normal(0.5, 0.1), "Real()"),
        (dist.Uniform(-0.5, 1.0), "Interval(lower_bound=-0.5, upper_bound=1.0)"),
        (dist.Normal(torch.zeros(UNITS), 1.0).to_event(1), "IndependentConstraint(Real(), 1)"),
        (dist.Poisson(1.0), "IntegerGreaterThan(lower_bound=0)"),
        (dist.Bernoulli(0.5), "Boolean()"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_prior_must_be_over_positive_numbers(prior: Any, support: str) -> None:
    message = (
        f"a prior on the spread must be over positive numbers, got {prior} with support {support}; "
        "use for example dist.LogNormal or dist.Gamma"
    )
    for build in (attached, lambda value: lstm(spread=value)):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(prior)


@pytest.mark.parametrize(
    "shape, got", [((UNITS,), "(4,) and ()"), ((UNITS + 1, 0), "() and (5,)")], ids=str
)
def test_a_prior_is_per_layer_or_per_unit(shape: tuple[int, ...], got: str) -> None:
    prior = dist.Gamma(2.0, 4.0).expand(shape[:1])
    prior = prior.to_event(1) if len(shape) > 1 else prior
    message = (
        f"a prior on the spread must have batch shape () and event shape () or (4,), got {got}; "
        "use .expand([hidden_size]).to_event(1) for one spread per unit"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attached(prior)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("units", [(), (UNITS,)], ids=["per layer", "per unit"])
def test_a_prior_of_another_dtype(units: tuple[int, ...], sites: Any) -> None:
    law = dist.LogNormal(torch.zeros(units, dtype=torch.float64), 1.0).to_event(len(units))
    rnn = lstm(2, spread=law, sites=sites)
    assert all(spread.dtype == torch.float32 for spread in rnn.spread)
    output, (h, c) = rnn(torch.randn(5, 2, 3))
    assert output.dtype == h.dtype == c.dtype == torch.float32
    output.sum().backward()


@pytest.mark.parametrize("particles", [4, 5])  # neither as many as the steps, and as many
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("prior", ["per layer", "per unit"])
@pytest.mark.parametrize("units", [1, 2])
def test_each_particle_has_its_own_draw_in_all_steps(
    units: int, prior: str, sites: Any, particles: int
) -> None:
    """Also where a layer has one unit, and γ as many dimensions as units would give it."""
    law = dist.LogNormal(0.0, 1.0)
    law = law if prior == "per layer" else law.expand([units]).to_event(1)
    noise = Additive(dist.Normal(0.0, 1.0))
    rnn = NoisyGRU(units, units, noise=noise, spread=law, sites=sites)
    model = SequenceModel(
        nn.Identity(), rnn, NormalEmission(units, 1), input_noise=noise, input_spread=law
    ).double()
    x, y = (torch.randn(5, 3, size, dtype=torch.float64) for size in (units, 1))
    with pyro.plate("particles", particles, dim=-3):
        together = prune_subsample_sites(pyro.poutine.trace(model).get_trace(x, y))
    together.compute_log_prob()
    for one in range(particles):
        values = {name: together.nodes[name]["value"][one] for name in together.stochastic_nodes}
        for name in ("input_spread", "rnn.spread_l0"):
            values[name] = values[name].reshape(law.event_shape)
        alone = pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace(x, y)
        alone.compute_log_prob()
        torch.testing.assert_close(
            together.nodes["y"]["log_prob"][one], alone.nodes["y"]["log_prob"]
        )


# ---------------------------------------------------------------- per layer


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


# ---------------------------------------------------------------- tensors, and setting it anew


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
