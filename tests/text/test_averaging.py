"""Antithetic pairs and the emission that reads the mean, against loops that do nothing clever."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, LanguageModel, Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN
from noisin_pyro.noise.reflection import reflect
from noisin_pyro.noise.standardized import Standardized
from noisin_pyro.text.evaluation import evaluate

K, D, H, B, UNROLL = 11, 4, 5, 3, 6
NOISES = {
    "additive": Additive(dist.Normal(0.0, 1.0)),
    "multiplicative": Multiplicative(dist.Gumbel(0.0, 1.0)),
}
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def build(noise: Any, kind: Any = NoisyLSTM, layers: int = 2, **options: Any) -> LanguageModel:
    rnn = kind(D, H, layers, noise=noise, spread=0.5, **options)
    model = LanguageModel(K, rnn).double().eval()
    with torch.no_grad():  # predictions far from uniform
        model.emission.weight.mul_(50)
    return model


def text(length: int = 50) -> Tensor:
    return torch.randint(K, (length,))


def columns(tokens: Tensor) -> Tensor:
    share = (len(tokens) - 1) // B
    return torch.stack([tokens[b * share : (b + 1) * share + 1] for b in range(B)], 1)


def probabilities(model: Any, output: Tensor, y: Tensor) -> Tensor:
    logits = output @ model.emission.weight.T + model.emission.bias
    return logits.softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def averaged(model: Any, tokens: Tensor, noise: Any, pairs: int) -> float:
    """Pair after pair, the first of a pair with ε and the second with its reflection."""
    column, total = columns(tokens), 0.0
    states: list[Any] = [None] * (2 * pairs)
    for first in range(0, len(column) - 1, UNROLL):
        x = column[first : min(first + UNROLL, len(column) - 1)]
        y = column[first + 1 : first + 1 + len(x)]
        drawn = model.rnn.draw_noise(len(x), pairs * B)
        mean = torch.zeros(y.shape, dtype=torch.float64)
        for s in range(2 * pairs):
            mine = [e[:, s % pairs * B : (s % pairs + 1) * B] for e in drawn]
            epsilon = mine if s < pairs else [reflect(noise, e) for e in mine]
            embedded = model.embedding(x)
            z, states[s] = model.rnn(embedded, states[s], sample=True, epsilon=epsilon)
            mean += probabilities(model, z, y) / (2 * pairs)
        total -= float(mean.log().sum())
    return total / (len(column) - 1) / B


@noises
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU, NoisyRNN])
@pytest.mark.parametrize("pairs", [1, 3])
def test_pairs_against_a_loop(noise: Any, kind: Any, pairs: int) -> None:
    model, tokens = build(noise, kind), text()
    torch.manual_seed(1)
    result = evaluate(model, tokens, 2 * pairs, antithetic=True, batch_size=B, unroll=UNROLL)
    torch.manual_seed(1)
    assert result.nats == pytest.approx(averaged(model, tokens, noise, pairs), rel=1e-10)


def test_a_pair_shares_what_has_a_prior() -> None:
    """Four noisy RNNs with a prior on γ are two pairs, so two draws of γ."""
    prior = dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    model, tokens = build(NOISES["additive"], layers=1), text()
    fixed = build(NOISES["additive"], layers=1)
    fixed.load_state_dict(model.state_dict())
    model.rnn.spread = prior
    torch.manual_seed(1)
    result = evaluate(model, tokens, 4, antithetic=True, batch_size=B, unroll=99)
    torch.manual_seed(1)
    spreads = [float(prior.sample()) for _ in range(2)]
    column = columns(tokens)
    mean = torch.zeros(column[1:].shape, dtype=torch.float64)
    with torch.no_grad():
        for spread in spreads:
            fixed.rnn.spread = spread
            epsilon = fixed.rnn.draw_noise(len(column) - 1, B)
            for sign in (1, -1):
                embedded = fixed.embedding(column[:-1])
                signed = [sign * e for e in epsilon]
                z, _ = fixed.rnn(embedded, sample=True, epsilon=signed)
                mean += probabilities(fixed, z, column[1:]) / 4
    assert result.nats == pytest.approx(-float(mean.log().mean()), rel=1e-10)


@torch.no_grad()
def read_from_h(model: Any, tokens: Tensor, samples: int) -> float:
    """Two tanh layers written out; the emission reads h of the upper one."""
    rnn, column = model.rnn, columns(tokens)
    x, y = column[:-1], column[1:]
    epsilon = rnn.draw_noise(len(x), samples * B)
    z = [torch.zeros(samples * B, H, dtype=torch.float64) for _ in range(2)]
    total = 0.0
    for t in range(len(x)):
        below = model.embedding(x[t]).repeat(samples, 1)
        for layer in range(2):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(rnn, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = torch.tanh(below @ w_ih.T + b_ih + z[layer] @ w_hh.T + b_hh)
            mult, add = rnn.noise[layer].affine(
                epsilon[layer][t], torch.tensor(0.5, dtype=torch.float64)
            )
            noisy = h * (1.0 if mult is None else mult) + (0.0 if add is None else add)
            z[layer] = h if rnn.noise_to == "output" else noisy
            below = h if layer == 1 or rnn.noise_to == "recurrence" else noisy
        found = probabilities(model, below, y[t].repeat(samples))
        total -= float(found.view(samples, B).mean(0).log().sum())
    return total / y.numel()


@noises
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
def test_readout_of_the_mean_against_a_loop(noise: Any, noise_to: Any) -> None:
    model, tokens = build(noise, NoisyRNN, noise_to=noise_to), text()
    torch.manual_seed(1)
    result = evaluate(model, tokens, 4, readout="mean", batch_size=B, unroll=99)
    torch.manual_seed(1)
    assert result.nats == pytest.approx(read_from_h(model, tokens, 4), rel=1e-10)
    torch.manual_seed(1)
    noisy = evaluate(model, tokens, 4, batch_size=B, unroll=99)
    same = math.isclose(noisy.nats, result.nats, rel_tol=1e-10)
    assert same == (noise_to == "recurrence")  # where the emission reads h anyway


@noises
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU, NoisyRNN])
def test_readout_changes_neither_the_state_nor_the_noise(noise: Any, kind: Any) -> None:
    """h read from the recurrence and z = noise(h) of it, on the same draws."""
    model, x = build(noise, kind), torch.randint(K, (7, B))
    drawn = model.draw_noise(7, B)
    z, noisy = model.predict(x, drawn=drawn)
    h, mean = model.predict(x, drawn=drawn, readout="mean")
    mult, add = noise.affine(drawn.rnn[1], torch.tensor(0.5, dtype=torch.float64))
    expected = h.features * (1.0 if mult is None else mult) + (0.0 if add is None else add)
    torch.testing.assert_close(z.features, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noisy, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
def test_both_kinds_of_sites_read_the_same_mean(
    noise_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every ε equal to 1 the order of the draws does not matter."""
    rsample = Standardized.rsample
    monkeypatch.setattr(Standardized, "rsample", lambda *args: torch.ones_like(rsample(*args)))
    one = build(NOISES["additive"], noise_to=noise_to)
    other = build(NOISES["additive"], noise_to=noise_to, sites="timestep")
    other.load_state_dict(one.state_dict())
    tokens = text()
    values = [evaluate(m, tokens, 2, readout="mean", batch_size=B).nats for m in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@noises
def test_one_layer_with_noise_on_the_output_alone_has_the_mean_path(noise: Any) -> None:
    model, tokens = build(noise, layers=1, noise_to="output"), text()
    path = evaluate(model, tokens, batch_size=B).nats
    averaged = evaluate(model, tokens, 4, antithetic=True, readout="mean", batch_size=B).nats
    assert averaged == pytest.approx(path, rel=1e-12)


@pytest.mark.parametrize("unroll", [1, 7])
def test_windows_do_not_matter(unroll: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rsample = Standardized.rsample
    monkeypatch.setattr(Standardized, "rsample", lambda *args: torch.ones_like(rsample(*args)))
    model, tokens = build(NOISES["multiplicative"], NoisyGRU), text()
    options: Any = {"antithetic": True, "readout": "mean", "batch_size": B}
    whole = evaluate(model, tokens, 2, **options).nats
    assert evaluate(model, tokens, 2, unroll=unroll, **options).nats == pytest.approx(whole)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (3, {"antithetic": True}, "even and at least 2, got 3"),
        (0, {"antithetic": True}, "even and at least 2, got 0"),
        (2, {"readout": "median"}, "readout must be 'noisy' or 'mean', got 'median'"),
    ],
)
def test_refusals(samples: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(build(NOISES["additive"]), text(), samples, **options)
