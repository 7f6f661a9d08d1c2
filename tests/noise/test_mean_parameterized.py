"""MeanParameterized: which families are accepted for which range of the state."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from torch import Tensor

from noisin_pyro import Additive, MeanParameterized, NoisyGRU, NoisyLSTM, NoisyRNN
from noisin_pyro.noise.base import Range
from tests.noise.bases import INF


def gamma(m: Tensor, s: Tensor) -> Any:
    return dist.Gamma(1 / s**2, 1 / (m * s**2))


def beta(m: Tensor, s: Tensor) -> Any:
    return dist.Beta(m / s**2, (1 - m) / s**2)


RANGES = {
    "tanh": (Range(-1.0, 1.0), "tanh"),
    "relu": (Range(0.0, INF, closed=True), "relu"),
    "sigmoid": (Range(0.0, 1.0), "sigmoid"),
    "identity": (Range(-INF, INF), "identity"),
}
LAWS: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, str]]] = {
    "Normal": (dist.Normal, {}),
    "Gamma": (gamma, {"tanh": "-0.998", "relu": "0", "identity": "-9.98"}),
    "Beta": (beta, {"tanh": "-0.998", "relu": "0", "identity": "-9.98"}),
    "Poisson": (lambda m, s: dist.Poisson(m), {"tanh": "-0.998", "identity": "-9.98"}),
    "Bernoulli": (
        lambda m, s: dist.Bernoulli(m),
        {"tanh": "-0.998", "relu": "2", "identity": "-9.98"},
    ),
    "Uniform": (
        lambda m, s: dist.Uniform(0 * m, 2 * m),
        {"tanh": "-0.998", "relu": "0", "identity": "-9.98"},
    ),
    "LogNormal": (
        lambda m, s: dist.LogNormal(m.log() - s**2 / 2, s),
        {"tanh": "-0.998", "relu": "0", "identity": "-9.98"},
    ),
}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("transition", RANGES)
@pytest.mark.parametrize("name", LAWS)
def test_a_range_is_refused_or_accepted(name: str, transition: str, validated: bool) -> None:
    """Naming the distribution and the transition; Distribution's validation may be switched off."""
    fn, refused = LAWS[name]
    low, high, closed = RANGES[transition][0]
    known = refused.get(transition)
    noise = MeanParameterized(fn)
    before = td.Distribution._validate_args
    try:
        td.Distribution.set_default_validate_args(validated)
        if known is None:
            noise.check_range(*RANGES[transition])
            return
        ends = f"[{low:g}, {high:g})" if closed else f"({low:g}, {high:g})"
        message = (
            f"MeanParameterized({name}) is not defined for the mean {known}, which lies in the "
            f"range {ends} of the {transition} transition; choose a family whose support "
            "contains that range, or Additive"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            noise.check_range(*RANGES[transition])
    finally:
        td.Distribution.set_default_validate_args(before)


def test_checking_a_range_draws_nothing() -> None:
    before = torch.get_rng_state()
    MeanParameterized(gamma).check_range(*RANGES["sigmoid"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_range_is_checked_while_a_model_without_memory_is_built() -> None:
    with torch.device("meta"):
        NoisyGRU(3, 4, noise=MeanParameterized(dist.Normal))
        with pytest.raises(ValueError, match="is not defined for the mean"):
            NoisyGRU(3, 4, noise=MeanParameterized(gamma))


def test_additive_noise_takes_any_state() -> None:
    for bounds_and_name in RANGES.values():
        Additive(dist.Gamma(2.0, 1.0)).check_range(*bounds_and_name)


def test_a_wrong_mean_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "MeanParameterized(Gamma) must have the state as its mean, got mean 16 for the state "
            "0.001; rescale its parameters"
        ),
    ):
        MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, torch.ones_like(m))).check_range(
            *RANGES["sigmoid"]
        )
    with pytest.raises(ValueError, match="must have the state as its mean, got mean -0.988 for"):
        MeanParameterized(lambda m, s: dist.Normal(m + 0.01, s)).check_range(*RANGES["tanh"])


def test_a_law_that_knows_no_mean_is_taken_at_its_word() -> None:
    def shifted(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, s), [td.AffineTransform(0.0, 1.0)])

    MeanParameterized(shifted).check_range(*RANGES["tanh"])

    def positive(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, s), [td.ExpTransform()])

    def narrow(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, 0.5 - m), [td.AffineTransform(0.0, 1.0)])

    for fn, state in ((positive, "-0.998"), (narrow, "0.6")):
        message = f"MeanParameterized(TransformedDistribution) is not defined for the mean {state}"
        with pytest.raises(ValueError, match=re.escape(message)):
            MeanParameterized(fn).check_range(*RANGES["tanh"])


def test_fn_must_be_a_function_that_returns_univariate_distributions() -> None:
    for wrong in (None, dist.Normal(0.0, 1.0)):  # the latter can be called: it draws
        with pytest.raises(TypeError, match=r"needs a function from \(mean, spread\) to a dist"):
            MeanParameterized(wrong)
    with pytest.raises(TypeError, match="needs fn to return a distribution, got tensor"):
        MeanParameterized(lambda m, s: m).check_range(*RANGES["tanh"])
    with pytest.raises(
        ValueError,
        match=re.escape(
            "needs fn to return one univariate distribution for each mean, got batch shape (1,) "
            "and event shape (1,) for means with shape (1, 1)"
        ),
    ):
        MeanParameterized(lambda m, s: dist.Normal(m, s).to_event(1)).check_range(*RANGES["tanh"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_state_is_moved_inside_its_range(dtype: torch.dtype) -> None:
    """σ(20) is 1 in float32, where a Beta's second parameter would be 0 and raise."""
    h = torch.tensor([-200.0, 0.3, 200.0], dtype=dtype).sigmoid().requires_grad_()
    noise = MeanParameterized(beta)
    with pytest.raises(ValueError, match="Expected parameter concentration"):
        noise.distribution(h, h.new_tensor(0.5))
    inside = noise.clamp(h, Range(0.0, 1.0))
    assert ((inside - h).abs() <= torch.finfo(dtype).eps).all() and inside[1] == h[1]
    z = noise.distribution(inside, h.new_tensor(0.5)).rsample()
    (gradient,) = torch.autograd.grad(z.sum(), h)
    assert z.isfinite().all() and gradient.isfinite().all()
    zero = torch.zeros(2, dtype=dtype)
    assert torch.equal(noise.clamp(zero, Range(0.0, INF, closed=True)), zero)
    assert torch.equal(Additive(dist.Normal(0.0, 1.0)).clamp(h, Range(0.0, 1.0)), h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0.5, 10.0, 1000.0])
def test_a_range_of_any_size_has_an_inside(end: float, dtype: torch.dtype) -> None:
    """10 − eps is 10 in floating point."""
    noise, states = MeanParameterized(beta), Range(-end, end)
    ends = torch.tensor([-end, end], dtype=dtype)
    inside = noise.clamp(ends, states)
    assert inside[0] > -end and inside[1] < end
    torch.testing.assert_close(inside, ends)
    far = torch.tensor([-2 * end, 1.01 * end], dtype=dtype)
    assert torch.equal(noise.clamp(far, states), far)


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3}], ids=["plain", "zoneout"])
@pytest.mark.parametrize("kind", [NoisyGRU, NoisyLSTM, NoisyRNN])
def test_bounded_noise_on_saturated_states(kind: Any, options: Any) -> None:
    """A Beta over (−1, 1), and states that float32 puts on its ends."""

    def fn(m: Tensor, s: Tensor) -> Any:
        return dist.AffineBeta((1 + m) / s**2, (1 - m) / s**2, m.new_tensor(-1), m.new_tensor(2))

    rnn = kind(3, 5, noise=MeanParameterized(fn), spread=0.5, **options)
    z, _ = rnn(100 * torch.randn(20, 4, 3))
    assert ((z >= -1) & (z <= 1)).all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 1)])
def test_mean_and_spread_arrive_in_one_shape(shape: tuple[int, ...]) -> None:
    seen = []

    def fn(m: Tensor, s: Tensor) -> Any:
        seen.append((m.shape, s.shape))
        return gamma(m, s)

    h = torch.rand(4, 5) + 0.1
    distribution = MeanParameterized(fn).distribution(h, torch.full(shape, 0.3))
    expected = torch.broadcast_shapes((4, 5), shape)
    assert seen == [(expected, expected)] and distribution.batch_shape == expected
    torch.testing.assert_close(distribution.mean, h.expand(expected))
    torch.testing.assert_close(distribution.stddev, 0.3 * h.expand(expected))


def test_equality_of_mean_parameterised_noises() -> None:
    assert MeanParameterized(gamma) == MeanParameterized(gamma) != MeanParameterized(beta)
    assert hash(MeanParameterized(gamma)) == hash(MeanParameterized(gamma))
    assert pickle.loads(pickle.dumps(MeanParameterized(gamma))) == MeanParameterized(gamma)


@pytest.mark.parametrize("kind", [dist.Gamma, td.Gamma], ids=["pyro", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_distributions_of_torch_and_states_in_half_precision(kind: Any, dtype: torch.dtype) -> None:
    """torch's distributions have no ``to_event``, and it samples no Gamma in half precision.

    The mean of each unit's 20,000 draws is within 5 standard errors and the rounding of the state;
    by chance it is not in one of 100,000 runs.
    """
    torch.manual_seed(0)
    noise = MeanParameterized(lambda m, s: kind(1 / s**2, 1 / (m * s**2)))
    rnn = NoisyRNN(2, 3, nonlinearity="sigmoid", noise=noise, spread=0.3, dtype=dtype)
    x = torch.randn(1, 1, 2, dtype=dtype).expand(1, 20_000, 2)
    trace = pyro.poutine.trace(rnn).get_trace(x)
    z, h = trace.nodes["_RETURN"]["value"][0], rnn(x, sample=False)[0]
    assert z.dtype == dtype and torch.as_tensor(trace.log_prob_sum()).isfinite()
    ratio = (z.double() / h.double()).detach().mean(1)
    bound = 5 * 0.3 / 20_000**0.5 + 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=bound)
    z.sum().backward()
    assert rnn.weight_hh_l0.grad is not None
