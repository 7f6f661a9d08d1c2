"""The particle filter against the Kalman filter and against enumeration.

Statistical tests have fixed seeds. Their bounds lie 6 standard errors out, where a normal
variable lies with probability 2e-9; for the means of skewed weights that are tested here, of at
least 4,000 draws each, that leaves a false-alarm rate below 1e-6.
"""

from __future__ import annotations

import math
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
    NoisyLSTM,
    NoisyRNN,
    SequenceModel,
    weight_drop,
)
from noisin_pyro.infer.particle_filter import filter_window
from noisin_pyro.infer.particles import Particles, effective_size, multinomial, systematic
from tests.helpers import linear_gaussian
from tests.infer.known_models import enumerated, kalman, masked_tanh, series

STREAMS, ERRORS = 4000, 6.0
schemes = pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
thresholds = pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])


def run(model: Any, x: Tensor, y: Tensor, count: int, **options: Any) -> Any:
    """A filter for each of many copies of one series."""
    particles = Particles.start(count, STREAMS, torch.zeros((), dtype=torch.float64))
    x, y = x.expand(-1, STREAMS, -1), y.expand(-1, STREAMS, -1)
    with torch.no_grad():
        return filter_window(model, x, y, particles, sample=True, **options)


def assert_mean(values: Tensor, expected: float) -> None:
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < ERRORS * error, (values.mean(), expected, error)


# -- evidence ----------------------------------------------------------------------------------


@thresholds
@schemes
@pytest.mark.parametrize("antithetic", [False, True])
def test_evidence_is_unbiased_against_kalman(
    threshold: float, resampling: Any, antithetic: bool
) -> None:
    model, (x, y) = linear_gaussian(scale=1.0), series(6)
    exact = float(kalman(model, x, y).sum())
    options = {"ess_threshold": threshold, "resampling": resampling, "antithetic": antithetic}
    log_p = run(model, x, y, 128, **options).log_probs.sum(0)
    assert_mean((log_p - exact).exp(), 1.0)


def test_log_evidence_is_within_its_monte_carlo_error_of_kalman() -> None:
    """By the delta method it is low by half its variance, of about 0.07."""
    model, (x, y) = linear_gaussian(), series(12)
    exact = float(kalman(model, x, y).sum())
    log_p = run(model, x, y, 256).log_probs.sum(0)
    assert 0.003 < float(log_p.var()) < 0.3
    assert float(log_p.mean()) < exact
    assert_mean(log_p + (log_p - log_p.mean()).square() / 2, exact)


def test_each_predictive_approaches_that_of_kalman() -> None:
    """Every log p(y_t | y_<t); the error of 512 particles is far below that of no weights."""
    model, (x, y) = linear_gaussian(), series(12)
    exact = kalman(model, x, y)
    filtered = run(model, x, y, 512).log_probs.mean(1)
    torch.testing.assert_close(filtered, exact, rtol=0, atol=0.02)
    equal = run(model, x, y, 1).log_probs.exp().mean(1).log()
    assert float((equal - exact).abs().max()) > 0.2


@thresholds
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
def test_evidence_is_unbiased_against_enumeration(threshold: float, noise_to: Any) -> None:
    model, (x, y) = masked_tanh(noise_to), series(3)
    exact = float(enumerated(model, x, y).sum(0).logsumexp(0) - math.log(4**3))
    log_p = run(model, x, y, 64, ess_threshold=threshold).log_probs.sum(0)
    assert_mean((log_p - exact).exp(), 1.0)


def test_readout_of_the_mean_is_the_filter_of_that_model() -> None:
    """The emission that reads h belongs to the model with noise_to="recurrence"."""
    x, y = series(3)
    model, other = masked_tanh("both"), masked_tanh("recurrence")
    values = []
    for one, readout in ((model, "mean"), (other, "noisy")):
        torch.manual_seed(1)
        values.append(run(one, x, y, 8, readout=readout).log_probs)
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_first_weights_sum_to_one_in_every_precision(dtype: torch.dtype) -> None:
    weights = Particles.start(100, 2, torch.zeros((), dtype=dtype)).log_weights
    torch.testing.assert_close(weights.exp().sum(0).double(), torch.ones(2).double())


# -- windows and padding -----------------------------------------------------------------------


@thresholds
def test_windows_change_nothing(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same noise and the same uniform numbers, in whatever windows they are drawn."""
    model, (x, y) = linear_gaussian(), series(9)
    x, y = x.expand(-1, 3, -1), y.expand(-1, 3, -1)
    drawn = model.draw_noise(9, 12)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.full(args, 0.4).double())

    def values(cuts: list[int]) -> list[Tensor]:
        particles = Particles.start(4, 3, torch.zeros((), dtype=torch.float64))
        log_probs = []
        for first, last in zip(cuts, cuts[1:]):
            part = slice(first, last)
            cut: Any = lambda epsilon, part=part: epsilon[part]  # noqa: E731
            noise = drawn.map(cut)
            options: Any = {"drawn": noise, "ess_threshold": threshold}
            found = filter_window(model, x[part], y[part], particles, **options)
            particles = found.particles
            log_probs.append(found.log_probs)
        return [torch.cat(log_probs), particles.state, particles.log_weights]

    for one, other in zip(values([0, 9]), values([0, 1, 4, 9])):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


PAST = (torch.arange(5).unsqueeze(1) >= torch.tensor([3, 5])).unsqueeze(-1)


@thresholds
def test_padding_counts_for_nothing(threshold: float) -> None:
    """Two series, of which the first ends early, against the first alone; the padding is NaN."""
    nan = float("nan")
    model, (x, y) = linear_gaussian(), series(5)
    x, y = x.expand(-1, 2, -1).clone(), y.expand(-1, 2, -1).clone()
    drawn = model.draw_noise(5, 8)
    short = drawn.map(lambda epsilon: epsilon[:3, ::2])
    like = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(1)
    whole = filter_window(
        model,
        torch.where(PAST, nan, x),
        y,
        Particles.start(4, 2, like),
        torch.tensor([3, 5]),
        drawn=drawn,
        ess_threshold=threshold,
    )
    steps = 1 if threshold else 3  # after resampling the uniform numbers of the two differ
    alone = filter_window(
        model, x[:3, :1], y[:3, :1], Particles.start(4, 1, like), drawn=short, ess_threshold=0.0
    )
    torch.testing.assert_close(whole.log_probs[:steps, :1], alone.log_probs[:steps])
    assert bool((whole.resampled[3:, 0] == 0).all())
    assert bool((whole.log_probs[3:, 0] == 0).all()) and bool((whole.log_probs[3:, 1] != 0).all())


class Box(nn.Module):
    """Observations within 1 of the state; all others are impossible."""

    def forward(self, z: Tensor) -> Any:
        return dist.Uniform(z - 1, z + 1, validate_args=False).to_event(1)


@schemes
@thresholds
def test_after_an_impossible_observation_the_likelihood_is_0_and_not_nan(
    resampling: Any, threshold: float
) -> None:
    torch.manual_seed(0)
    rnn = NoisyRNN(1, 1, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.1)
    model = SequenceModel(nn.Identity(), rnn, Box())
    x, y = torch.zeros(4, 2, 1), torch.zeros(4, 2, 1)
    y[2, 0] = 9.0
    particles = Particles.start(64, 2, x)
    options: Any = {"resampling": resampling, "ess_threshold": threshold, "sample": True}
    found = filter_window(model, x, y, particles, **options)
    assert found.log_probs.isneginf().nonzero().tolist() == [[2, 0]]
    assert not found.log_probs.isnan().any() and found.effective[2, 0] == 64


# -- resampling --------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.5, 0.02, 0.0, 0.28, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("widest", [torch.float64, torch.float32])
def test_systematic_resampling_rounds_up_or_down_and_is_unbiased(
    widest: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a device without double precision."""
    monkeypatch.setattr("noisin_pyro.infer.particles.widest", lambda device: widest)
    ancestors = systematic(WEIGHTS.log().unsqueeze(1).expand(5, 20_000))
    copies = torch.stack([(ancestors == k).sum(0) for k in range(5)]).double()
    expected = 5 * WEIGHTS.unsqueeze(1)
    assert bool(((copies - expected).abs() < 1).all())
    assert bool((ancestors.diff(dim=0) >= 0).all())
    for k in (0, 1, 3):
        assert_mean(copies[k], float(expected[k]))
    assert bool((copies[4] == 1).all()) and bool((copies[2] == 0).all())


def test_multinomial_resampling_draws_independently() -> None:
    ancestors = multinomial(WEIGHTS.log().unsqueeze(1).expand(5, 20_000))
    for k in range(5):
        if k != 2:
            assert_mean((ancestors == k).double().mean(0), float(WEIGHTS[k]))
    assert_mean((ancestors[0] == ancestors[1]).double(), float(WEIGHTS.square().sum()))


def test_resampling_selects_states_of_the_same_sequence() -> None:
    state = torch.arange(6.0).view(1, 6, 1)  # particle k of sequence b is 2 k + b
    log_weights = torch.tensor([[0.7, 0.2], [0.2, 0.2], [0.1, 0.6]]).log()
    particles = Particles((state, None), log_weights)
    ancestors = torch.tensor([[0, 2], [0, 2], [1, 2]])
    new = particles.select(ancestors, torch.tensor([True, False]))
    assert new.state[0].flatten().tolist() == [0.0, 1.0, 0.0, 3.0, 2.0, 5.0]
    assert new.state[1] is None
    torch.testing.assert_close(new.log_weights.exp()[:, 0], torch.full((3,), 1 / 3))
    assert torch.equal(new.log_weights[:, 1], log_weights[:, 1])


def test_resampling_happens_below_the_threshold_alone() -> None:
    model, (x, y) = linear_gaussian(), series(8)
    for threshold in (0.3, 0.7):
        found = run(model, x, y, 10, ess_threshold=threshold, resampling="multinomial")
        below = found.effective[:-1] < threshold * 10
        assert torch.equal(found.resampled[1:] != 0, below)
        assert 0.01 < float(below.double().mean()) < 0.99
    assert float(effective_size(torch.full((4, 1), 0.25).log())) == pytest.approx(4.0)


# -- what it refuses ---------------------------------------------------------------------------


def lstm(**options: Any) -> LanguageModel:
    noise = Multiplicative(dist.Normal(0.0, 1.0))
    return LanguageModel(7, NoisyLSTM(3, 4, noise=noise, **options))


@pytest.mark.parametrize(
    ("model", "threshold", "message"),
    [
        (lstm(), 1.5, "between 0 .* and 1 .*, got 1.5"),
        (lstm(tied=True), 0.5, "got a model with tied=True"),
        (lstm(spread=dist.LogNormal(0.0, 1.0)), 0.5, "got a prior on spread_l0"),
        (LanguageModel(7, NoisyLSTM(3, 4), dropout_words=0.1), 0.5, "with dropout_words"),
        (LanguageModel(7, NoisyLSTM(3, 4, 2, dropout=0.1, tied=True)), 0.5, "with tied=True"),
        (LanguageModel(7, NoisyLSTM(3, 4, tied=True), dropout_output=0.1), 0.5, "with tied=True"),
        (LanguageModel(7, weight_drop(NoisyLSTM(3, 4), p=0.5)), 0.5, "with weight drop"),
    ],
)
def test_refusals(model: LanguageModel, threshold: float, message: str) -> None:
    tokens = torch.randint(7, (4, 2))
    particles = Particles.start(3, 2, torch.zeros(()))
    with pytest.raises(ValueError, match=message):
        filter_window(model, tokens[:-1], tokens[1:], particles, ess_threshold=threshold)


def test_masks_that_do_not_act_are_no_obstacle() -> None:
    tokens = torch.randint(7, (4, 2))
    for model in (
        LanguageModel(7, weight_drop(NoisyLSTM(3, 4), p=0.5)).eval(),
        LanguageModel(7, weight_drop(NoisyLSTM(3, 4), p=0.0)),
        LanguageModel(7, NoisyLSTM(3, 4, tied=True)),
    ):
        particles = Particles.start(3, 2, torch.zeros(()))
        filter_window(model, tokens[:-1], tokens[1:], particles, ess_threshold=0.5)


def test_noise_that_has_no_epsilon_is_drawn_step_by_step() -> None:
    """Beta noise on a sigmoid state; by chance no two particles are equal."""
    beta = MeanParameterized(lambda m, s: dist.Beta(m / s**2, (1 - m) / s**2))
    model = LanguageModel(7, NoisyRNN(3, 4, nonlinearity="sigmoid", noise=beta, spread=0.3))
    tokens = torch.randint(7, (5, 2))
    with torch.no_grad():
        found = filter_window(
            model, tokens[:-1], tokens[1:], Particles.start(6, 2, torch.zeros(())), sample=True
        )
    assert found.particles.state.unique(dim=1).shape[1] == 12
