"""Forecasts of several steps against the exact ones of a linear Gaussian model, and loops by hand.

False alarms: the statistical test makes 24 comparisons at six standard errors, each at 2e-9, and
those of variances, whose distribution has a heavier tail, at less than 1e-7.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    SequenceModel,
    forecast,
)

NORMAL = Additive(dist.Normal(0.0, 1.0))
SIGNS = Additive(dist.Bernoulli(0.5))  # ε is −1 or 1


class Exact(nn.Module):
    """An emission without noise of its own: y = V z."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, size)

    def forward(self, z: Tensor) -> Any:
        return dist.Delta(self.linear(z), event_dim=1)


def exact_moments(model: SequenceModel, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Mean (N,) and covariance (N, N) of the forecasts of one series, by algebra.

    What was drawn up to a step, and its state z, are jointly Gaussian; a step adds to them
    z' = W_hh z + W_ih y + b + γ ε and y' = V z' + c + σ e.
    """
    rnn: Any = model.rnn
    w_ih, w_hh = rnn.weight_ih_l0, rnn.weight_hh_l0
    bias, gamma = rnn.bias_ih_l0 + rnn.bias_hh_l0, rnn.spread[0]
    v, c = model.emission.weight, model.emission.bias
    sigma = model.emission.log_scale.exp()
    hidden = len(w_hh)
    mean, cov = torch.zeros(hidden).double(), torch.zeros(hidden, hidden).double()
    eye = torch.eye(hidden).double()
    for value in x:
        mean = w_hh @ mean + w_ih @ value + bias
        cov = w_hh @ cov @ w_hh.T + gamma**2 * eye
    for step in range(steps):  # the joint vector is (y_1, ..., y_step, z)
        if step:
            kept = torch.eye(step, step + hidden).double()
            move = torch.cat([torch.zeros(hidden, step - 1).double(), w_ih, w_hh], 1)
            a = torch.cat([kept, move])
            mean = a @ mean + torch.cat([torch.zeros(step).double(), bias])
            cov = a @ cov @ a.T
            cov[step:, step:] += gamma**2 * eye
        see = torch.cat([torch.zeros(1, step).double(), v], 1)
        size = len(mean)
        a = torch.cat([torch.eye(step, size).double(), see, torch.eye(size).double()[step:]])
        mean, cov = a @ mean, a @ cov @ a.T
        mean[step] += c[0]
        cov[step, step] += sigma[0] ** 2
    return mean[:steps].detach(), cov[:steps, :steps].detach()


def test_moments_of_a_linear_gaussian_model() -> None:
    rnn = NoisyRNN(1, 2, nonlinearity="identity", noise=NORMAL, spread=0.4)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(2, 1, scale=0.5)).double()
    x = torch.randn(6, 2, 1).double()
    count, steps = 40_000, 4
    generator = torch.Generator().manual_seed(0)
    drawn = forecast(model, x, steps, samples=count, generator=generator)
    assert drawn.shape == (count, steps, 2, 1) and not drawn.requires_grad
    for series in range(2):
        mean, cov = exact_moments(model, x[:, series], steps)
        # The forecasts of a step must not be those of independent inputs.
        assert (cov[0, 1:].abs() > 0.02).any()
        found = drawn[:, :, series, 0]
        errors = (found.mean(0) - mean) / (cov.diagonal() / count).sqrt()
        assert errors.abs().max() < 6
        spread = cov.diagonal().outer(cov.diagonal()) + cov**2  # of a sample covariance, times S
        errors = (torch.cov(found.T) - cov) / (spread / count).sqrt()
        assert errors.abs().max() < 6
    level = drawn.quantile(torch.tensor([0.5]).double(), 0)
    assert level.shape == (1, steps, 2, 1)


def at(step: int, epsilon: Tensor) -> Tensor:
    """The noise of a step; a tied noise has one for all."""
    return epsilon if len(epsilon) == 1 else epsilon[step : step + 1]


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_loop_by_hand(sites: Any, tied: bool) -> None:
    """One step at a time from the first input on, with the same noise."""
    if tied and sites == "timestep":
        pytest.skip("a tied noise has no site per timestep")
    rnn = NoisyLSTM(1, 3, 2, noise=Multiplicative(dist.Laplace(0.0, 1.0)), sites=sites, tied=tied)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(3, 1), input_noise=NORMAL)
    x, samples, steps = torch.randn(4, 2, 1), 3, 5
    torch.manual_seed(1)
    ours = forecast(model, x, steps, samples=samples)
    if sites == "timestep":  # its noise is drawn step by step, so that the loop draws other noise
        assert ours.isfinite().all() and ours.shape == (samples, steps, 2, 1)
        return
    torch.manual_seed(1)
    with torch.no_grad():
        model.eval()
        noise = model.draw_noise(4 + steps - 1, samples * 2)
        read, state = x.repeat(1, samples, 1), None
        drawn: list[Tensor] = []
        for step in range(4 + steps - 1):
            now = noise.map(partial(at, step))
            last = read[step : step + 1] if step < 4 else drawn[-1]
            emitted, state = model.predict(last, state, drawn=now)
            if step >= 3:
                drawn.append(emitted.sample())
    by_hand = torch.cat(drawn).unflatten(1, (samples, 2)).transpose(0, 1)
    assert torch.allclose(ours, by_hand, atol=1e-6)
    assert (ours[0] - ours[1]).abs().max() > 0.01


def test_the_mean_path_is_torchs() -> None:
    """Without noise each forecast is that of torch's LSTM on the whole series so far."""
    rnn = NoisyLSTM(1, 3, noise=NORMAL, spread=0.5)
    model = SequenceModel(nn.Identity(), rnn, Exact(3, 1))
    plain = nn.LSTM(1, 3)
    plain.load_state_dict(rnn.state_dict(), strict=False)
    x = torch.randn(4, 2, 1)
    ours = forecast(model, x, 5, samples=2, sample=False)
    series = x
    for _ in range(5):
        series = torch.cat([series, model.emission.linear(plain(series)[0][-1:])])
    assert torch.allclose(ours[0], series[4:], atol=1e-6) and torch.equal(ours[0], ours[1])
    assert model.training
    _, state = model.predict(x[:3], sample=False)
    assert torch.allclose(forecast(model, x[3:], 5, samples=2, state=state, sample=False), ours)
    copies = tuple(part.repeat(1, 2, 1) for part in state)
    assert torch.allclose(forecast(model, x[3:], 5, samples=2, state=copies, sample=False), ours)


def test_the_next_input_may_hold_more_than_what_was_drawn() -> None:
    model = SequenceModel(nn.Identity(), NoisyGRU(2, 3), Exact(3, 1))
    clock = iter(range(10, 20))

    def with_the_hour(y: Tensor) -> Tensor:
        return torch.cat([y, torch.full_like(y, next(clock))], -1)

    x = torch.randn(3, 2, 2)
    ours = forecast(model, x, 3, samples=1, next_input=with_the_hour)[0]
    series = x
    for hour in (10, 11):
        y = model.eval().predict(series)[0].v[-1:]
        series = torch.cat([series, torch.cat([y, torch.full_like(y, hour)], -1)])
    assert torch.allclose(ours, model.predict(series)[0].v[-3:], atol=1e-6)


def test_each_sample_has_a_spread_of_its_own() -> None:
    """With a weight matrix of zeros, y = γ ε with ε = ±1."""
    rnn = NoisyRNN(1, 1, nonlinearity="identity", noise=SIGNS, spread=dist.LogNormal(0.0, 1.0))
    model = SequenceModel(nn.Identity(), rnn, Exact(1, 1))
    for weight in model.parameters():
        nn.init.zeros_(weight)
    nn.init.ones_(model.emission.linear.weight)
    sizes = forecast(model, torch.zeros(2, 3, 1), 6, samples=8).abs()
    assert torch.allclose(sizes, sizes[:, :1, :1].expand_as(sizes), rtol=1e-5)
    assert len(set(sizes[:, 0, 0, 0].tolist())) == 8


def test_words_and_other_noise() -> None:
    drawn = forecast(LanguageModel(7, NoisyGRU(4, 5)), torch.zeros(3, 2, dtype=torch.long), 4)
    assert drawn.shape == (100, 4, 2) and drawn.dtype == torch.int64
    gamma = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)))
    rnn = NoisyRNN(1, 3, nonlinearity="sigmoid", noise=gamma, spread=0.5)
    model = SequenceModel(nn.Identity(), rnn, Exact(3, 1))
    drawn = forecast(model, torch.zeros(3, 2, 1), 4, samples=5)
    assert drawn.std(0).min() > 0


def test_a_generator_is_all_that_changes() -> None:
    rnn = NoisyGRU(1, 3, noise=NORMAL)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(3, 1))
    before, x = torch.get_rng_state(), torch.randn(3, 2, 1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    one, other = (forecast(model, x, 2, samples=3, generator=generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(one, other)
    assert torch.equal(forecast(model, x, 2, samples=3, generator=generator.manual_seed(4)), one)
    assert not torch.equal(forecast(model, x, 2, samples=3), one)
    assert not torch.equal(torch.get_rng_state(), before)
    assert math.isfinite(float(one.sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"x": torch.zeros(3)}, r"x must have shape \(T, B\) .*, got \(3,\)"),
        ({"x": torch.zeros(0, 2, 1)}, r"with T >= 1, got \(0, 2, 1\)"),
        (
            {"next_input": lambda y: torch.cat([y, y], -1)},
            r"each step's input has shape \(200, 1\), and .* read next \(200, 2\)",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    model = SequenceModel(nn.Identity(), NoisyGRU(1, 3), NormalEmission(3, 1))
    with pytest.raises(ValueError, match=message):
        forecast(model, **{"x": torch.zeros(3, 2, 1), "steps": 2, **options})


@pytest.mark.parametrize("option", ["steps", "samples"])
def test_a_count_is_a_whole_number(option: str) -> None:
    model = SequenceModel(nn.Identity(), NoisyGRU(1, 3), NormalEmission(3, 1))
    with pytest.raises(TypeError, match=f"{option} must be a whole number, got 2.5"):
        forecast(model, torch.zeros(3, 2, 1), **{"steps": 2, option: 2.5})  # type: ignore[arg-type]


def test_inputs_that_are_more_than_what_is_drawn() -> None:
    model = SequenceModel(nn.Linear(3, 4), NoisyGRU(4, 3), NormalEmission(3, 1))
    x = torch.zeros(5, 2, 3)
    with pytest.raises(ValueError, match="give next_input=, which makes the one of the other"):
        forecast(model, x, 2, samples=4)
    assert forecast(model, x, 1, samples=4).shape == (4, 1, 2, 1)  # it is not read
    drawn = forecast(model, x, 2, samples=4, next_input=lambda y: y.expand(1, 8, 3))
    assert drawn.shape == (4, 2, 2, 1)
