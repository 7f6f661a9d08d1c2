"""Averages over the first S of many noisy RNNs, and the paired standard error."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Multiplicative, NoisyGRU, NoisyLSTM
from noisin_pyro.noise.reflection import reflect
from noisin_pyro.text.averaging import evaluate_each, paired_difference
from noisin_pyro.text.evaluation import evaluate
from tests.text.test_averaging import UNROLL, B, build, columns, probabilities, text

NOISES = {
    "additive": Additive(dist.Normal(0.0, 1.0)),
    "multiplicative": Multiplicative(dist.Gumbel(0.0, 1.0)),
}
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
TOTAL = 6


@torch.no_grad()
def by_hand(model: Any, tokens: Tensor, noise: Any, count: int, pairs: bool) -> float:
    """The first ``count`` of TOTAL noisy RNNs, or pairs of them, each run by itself."""
    column, total = columns(tokens), 0.0
    own = TOTAL // 2 if pairs else TOTAL  # those whose noise is drawn
    chosen = (
        [(s, mirrored) for s in range(count // 2) for mirrored in (False, True)]
        if pairs
        else [(s, False) for s in range(count)]
    )
    states: dict[Any, Any] = dict.fromkeys(chosen)
    for first in range(0, len(column) - 1, UNROLL):
        x = column[first : min(first + UNROLL, len(column) - 1)]
        y = column[first + 1 : first + 1 + len(x)]
        drawn = model.rnn.draw_noise(len(x), own * B)
        mean = torch.zeros(y.shape, dtype=torch.float64)
        for copy in chosen:
            epsilon = [e[:, copy[0] * B : (copy[0] + 1) * B] for e in drawn]
            epsilon = [reflect(noise, e) for e in epsilon] if copy[1] else epsilon
            z, states[copy] = model.rnn(
                model.embedding(x), states[copy], sample=True, epsilon=epsilon
            )
            mean += probabilities(model, z, y) / count
        total -= float(mean.log().sum())
    return total / (len(column) - 1) / B


@noises
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_first_of_many_against_a_loop(noise: Any, kind: Any, pairs: bool) -> None:
    model, tokens = build(noise, kind), text()
    torch.manual_seed(1)
    fits = evaluate_each(
        model, tokens, [2, 4, TOTAL], antithetic=pairs, batch_size=B, unroll=UNROLL
    )
    for count, fit in fits.items():
        torch.manual_seed(1)
        assert fit.nats == pytest.approx(by_hand(model, tokens, noise, count, pairs), rel=1e-10)
        assert fit.samples == count and fit.log_probs.shape == (16, B)


@noises
@pytest.mark.parametrize("readout", ["noisy", "mean"])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_largest_is_evaluate(noise: Any, readout: Any, pairs: bool) -> None:
    model, tokens = build(noise), text()
    options: Any = {"antithetic": pairs, "readout": readout, "batch_size": B, "unroll": UNROLL}
    torch.manual_seed(1)
    fits = evaluate_each(model, tokens, (2, TOTAL), **options)
    torch.manual_seed(1)
    fit = evaluate(model, tokens, TOTAL, **options)
    torch.testing.assert_close(fits[TOTAL].log_probs, fit.log_probs, rtol=1e-12, atol=1e-12)
    assert abs(fits[2].nats - fit.nats) > 1e-6


def test_with_a_prior_pairs_are_whole() -> None:
    """Under a prior on γ the pairs run one after the other; the order is the same."""
    prior = dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    model, tokens = build(NOISES["additive"], layers=1), text()
    model.rnn.spread = prior
    torch.manual_seed(1)
    fits = evaluate_each(model, tokens, [2, 4], antithetic=True, batch_size=B)
    torch.manual_seed(1)
    fit = evaluate(model, tokens, 4, antithetic=True, batch_size=B)
    torch.testing.assert_close(fits[4].log_probs, fit.log_probs, rtol=1e-12, atol=1e-12)


def test_averages_get_better_and_their_excess_falls_as_one_over_s() -> None:
    """With z independent the excess is about Var/(2 S mean²), so that S times it stays level."""
    model, tokens = build(NOISES["additive"], layers=1), text(3000)
    torch.manual_seed(1)
    fits = evaluate_each(model, tokens, [2, 4, 8, 512], batch_size=B)
    nats = [fits[count].nats for count in (2, 4, 8, 512)]
    assert nats == sorted(nats, reverse=True)
    excess = [(nats[0] - nats[3]) / (nats[1] - nats[3]), (nats[1] - nats[3]) / (nats[2] - nats[3])]
    assert all(1.4 < ratio < 2.6 for ratio in excess)


def test_a_mean_path_in_every_copy() -> None:
    """Without noise all averages are the mean path."""
    model, tokens = build(None), text()
    path = evaluate(model, tokens, batch_size=B)
    for fit in evaluate_each(model, tokens, [1, 3], batch_size=B).values():
        torch.testing.assert_close(fit.log_probs, path.log_probs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("samples", "antithetic", "message"),
    [
        ([], False, r"of at least 1, got \[\]"),
        ([4, 0], False, r"of at least 1, got \[4, 0\]"),
        ([3, 4], True, "even and at least 2, got 3"),
    ],
)
def test_refusals(samples: list[int], antithetic: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_each(build(NOISES["additive"]), text(), samples, antithetic=antithetic)


def test_the_paired_error_of_independent_tokens() -> None:
    """With blocks of one it is the standard deviation over √n; pairing removes what is shared."""
    shared = torch.randn(200, 5, dtype=torch.float64) * 100
    one, other = torch.randn(2, 200, 5, dtype=torch.float64)
    found = paired_difference(shared + one, shared + other, block=1)
    difference = (one - other).flatten()
    assert found.mean == pytest.approx(float(difference.mean()))
    assert found.error == pytest.approx(float(difference.std()) / math.sqrt(1000))


def test_the_paired_error_of_dependent_tokens() -> None:
    """An autoregression of coefficient 0.8: the means of 400 series vary as their errors say.

    The variance of a mean of many is 1/(1 − 0.8)² over N. The tolerance is 20 %; the standard
    deviation of 400 means is known to 3.5 %, which makes that more than five of its standard
    errors, beside 5 % by which blocks of 32 fall short.
    """
    torch.manual_seed(0)
    series = torch.randn(400, 1024, 4, dtype=torch.float64)
    for t in range(1, 1024):
        series[:, t] += 0.8 * series[:, t - 1]
    nothing = torch.zeros(1024, 4, dtype=torch.float64)
    found = [paired_difference(one, nothing) for one in series]
    actual = torch.tensor([one.mean for one in found]).std()
    claimed = torch.tensor([one.error for one in found]).square().mean().sqrt()
    assert float(actual) == pytest.approx(5 / math.sqrt(4096), rel=0.2)
    assert float(claimed) == pytest.approx(float(actual), rel=0.2)
    naive = paired_difference(series[0], nothing, block=1)
    assert naive.error < 0.5 * float(actual)  # taken for independent


def test_what_is_left_over_counts_in_the_mean() -> None:
    found = paired_difference(
        torch.tensor([[0.0], [0.0], [1.0], [1.0], [8.0]]), torch.zeros(5, 1), 2
    )
    assert found.mean == 2.0 and found.error == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "block", "message"),
    [
        ((5, 3), 1, r"of the same tokens, got shapes \(5, 2\) and \(5, 3\)"),
        ((5, 2), 6, "two blocks of 6 tokens, got a text with 0; give a smaller block"),
    ],
)
def test_errors_of_paired_difference(shape: tuple[int, int], block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(torch.zeros(5, 2), torch.zeros(shape), block)
