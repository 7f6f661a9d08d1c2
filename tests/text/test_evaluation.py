"""Held-out perplexity against loops that do nothing clever."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    Evaluation,
    LanguageModel,
    Learned,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    forecast,
)
from noisin_pyro.noise.standardized import Standardized
from noisin_pyro.text.averaging import evaluate_each
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.text.generate import sample_tokens

K, D, H, B = 11, 4, 5, 3
NOISES = {
    "additive": Additive(dist.Normal(0.0, 1.0)),
    "multiplicative": Multiplicative(dist.Gamma(2.0, 1.0)),
}
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def build(noise: Any, kind: Any = NoisyLSTM, *, spread: Any = 0.6, **options: Any) -> Any:
    rnn = kind(D, H, 2, noise=noise, spread=spread, dropout=0.3)
    model = LanguageModel(K, rnn, dropout_input=0.2, dropout_output=0.2, **options).double()
    with torch.no_grad():  # predictions far from uniform
        model.emission.weight.mul_(50)
    return model


def text(length: int = 50) -> Tensor:
    return torch.randint(K, (length,))


@noises
def test_mean_path_against_a_token_by_token_loop(noise: Any) -> None:
    model, tokens = build(noise, input_noise=noise), text()
    plain = nn.LSTM(D, H, 2).double()
    plain.load_state_dict(model.rnn.state_dict(), strict=False)
    share = (len(tokens) - 1) // B  # of the tokens to predict, for each stream
    total = 0.0
    for stream in range(B):
        state = None
        for place in range(stream * share, (stream + 1) * share):
            embedded = model.embedding.weight[tokens[place]].view(1, 1, D)
            output, state = plain(embedded, state)
            logits = output.view(H) @ model.emission.weight.T + model.emission.bias
            total -= float(logits.log_softmax(-1)[tokens[place + 1]].detach())
    result = evaluate(model, tokens, batch_size=B)
    assert result.tokens == B * share == 48
    assert result.nats == pytest.approx(total / result.tokens, rel=1e-12)
    assert abs(result.nats - math.log(K)) > 0.05  # a model that predicts something


@noises
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU, NoisyRNN])
def test_unroll_does_not_matter(noise: Any, kind: Any) -> None:
    model, tokens = build(noise, kind), text()
    values = {evaluate(model, tokens, batch_size=B, unroll=unroll).nats for unroll in (1, 7, 999)}
    assert max(values) == pytest.approx(min(values), rel=1e-12)


@noises
@pytest.mark.parametrize("samples", [1, 4])
def test_averaging_against_a_loop_over_samples(noise: Any, samples: int) -> None:
    """The same noise, one noisy RNN after another; each carries a state of its own."""
    model, tokens, unroll = build(noise), text(), 6
    torch.manual_seed(1)
    result = evaluate(model, tokens, samples, batch_size=B, unroll=unroll)
    torch.manual_seed(1)
    share = (len(tokens) - 1) // B
    columns = torch.stack([tokens[b * share : (b + 1) * share + 1] for b in range(B)], 1)
    model.eval()
    states: list[Any] = [None] * samples
    total = 0.0
    for first in range(0, share, unroll):
        x = columns[first : min(first + unroll, share)]
        y = columns[first + 1 : first + 1 + len(x)]
        epsilon = model.rnn.draw_noise(len(x), samples * B)
        probabilities = torch.zeros(y.shape, dtype=torch.float64)
        for s in range(samples):
            mine = [e[:, s * B : (s + 1) * B] for e in epsilon]
            z, states[s] = model.rnn(model.embedding(x), states[s], sample=True, epsilon=mine)
            logits = z @ model.emission.weight.T + model.emission.bias
            probabilities += logits.softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1) / samples
        total -= float(probabilities.log().sum().detach())
    assert result.samples == samples and result.tokens == B * share
    assert result.nats == pytest.approx(total / result.tokens, rel=1e-10)
    assert result.nats != evaluate(model, tokens, batch_size=B).nats


@pytest.mark.parametrize("samples", [1, 4])
def test_with_a_prior_each_noisy_rnn_holds_its_own_spread(samples: int) -> None:
    """Against a loop over noisy RNNs, each with a fixed γ drawn beforehand from the prior."""
    prior = dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    model, tokens, unroll = build(NOISES["additive"], spread=prior), text(), 6
    fixed = build(NOISES["additive"]).eval()
    fixed.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    result = evaluate(model, tokens, samples, batch_size=B, unroll=unroll)
    torch.manual_seed(1)
    spreads = [[float(prior.sample()) for _ in range(2)] for _ in range(samples)]
    share = (len(tokens) - 1) // B
    columns = torch.stack([tokens[b * share : (b + 1) * share + 1] for b in range(B)], 1)
    states: list[Any] = [None] * samples
    total = 0.0
    for first in range(0, share, unroll):
        x = columns[first : min(first + unroll, share)]
        y = columns[first + 1 : first + 1 + len(x)]
        probabilities = torch.zeros(y.shape, dtype=torch.float64)
        for s in range(samples):
            fixed.rnn.spread_l0, fixed.rnn.spread_l1 = spreads[s]
            distribution, states[s] = fixed.predict(x, states[s], sample=True)
            probabilities += distribution.log_prob(y).detach().exp() / samples
        total -= float(probabilities.log().sum())
    assert result.nats == pytest.approx(total / result.tokens, rel=1e-10)
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("what", ["spread", "weights"])
def test_what_has_a_prior_is_held_for_the_whole_text(
    what: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one ε in all steps the windows' length tells nothing but whether γ and W are held.

    Equal draws make this exact: it cannot fail by chance.
    """
    rsample = Standardized.rsample
    monkeypatch.setattr(Standardized, "rsample", lambda *args: torch.ones_like(rsample(*args)))
    if what == "spread":
        model = build(NOISES["additive"], spread=dist.LogNormal(0.0, 1.0))
    else:
        model = build(NOISES["additive"])
        distribution = dist.Normal(torch.zeros(4 * H, H, dtype=torch.float64), 1.0)
        model.rnn.weight_hh_l0 = PyroSample(distribution.to_event(2))
    tokens, values = text(), []
    for unroll in (1, 7, 999):
        torch.manual_seed(1)
        values.append(evaluate(model, tokens, samples, batch_size=B, unroll=unroll).nats)
    assert max(values) == pytest.approx(min(values), rel=1e-12)
    again = evaluate(model, tokens, samples, batch_size=B).nats
    assert (again == values[0]) == (what == "spread" and samples == 0)


def test_it_leaves_no_trace() -> None:
    model, tokens = build(NOISES["additive"]), text()
    before = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        first = evaluate(model, tokens, batch_size=B)
        assert first == evaluate(model, tokens, batch_size=B)  # no noise, no dropout
        assert model.training is model.rnn.training is training
    assert torch.equal(torch.get_rng_state(), before)
    model.train()
    with pytest.raises(IndexError):
        evaluate(model, torch.full((50,), K), batch_size=B)
    assert model.training
    torch.manual_seed(1)
    noisy = evaluate(model, tokens, 2, batch_size=B)
    assert noisy != evaluate(model, tokens, 2, batch_size=B)
    torch.manual_seed(1)
    assert noisy == evaluate(model, tokens, 2, batch_size=B)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not list(pyro.get_param_store())


def test_every_part_keeps_its_mode() -> None:
    """A part that was frozen in evaluation mode stays so, and draws no noise in the next step."""
    model, tokens = build(NOISES["additive"]), text()
    model.rnn.eval()
    evaluate(model, tokens, 2, batch_size=B)
    evaluate_each(model, tokens, [2], batch_size=B)
    sample_tokens(model, tokens[:4].unsqueeze(1), 3)
    forecast(model, tokens[:4].unsqueeze(1), 3)
    assert model.training and model.embedding.training and not model.rnn.training


def test_a_learned_spread_is_the_models_own() -> None:
    """Two models of one name, evaluated in turn."""
    rnns = [NoisyGRU(D, H, noise=NOISES["additive"], spread=Learned(s)) for s in (0.2, 5.0)]
    rnns[1].load_state_dict({k: v for k, v in rnns[0].state_dict().items() if "spread" not in k})
    values = []
    models = [LanguageModel(K, rnn) for rnn in rnns]
    models[1].embedding, models[1].emission = models[0].embedding, models[0].emission
    for model in models:
        torch.manual_seed(1)
        values.append(evaluate(model, text(), 2, batch_size=B).nats)
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("tokens", "samples", "options", "message"),
    [
        (50, -1, {}, "samples must be 0 for the mean path or positive, got -1"),
        (3, 0, {"batch_size": 10}, "3 tokens is shorter than one batch of 10.*smaller batch_size"),
        (50, 0, {"unroll": 0}, "unroll must be at least 1, got 0"),
    ],
)
def test_refusals(tokens: int, samples: int, options: dict[str, Any], message: str) -> None:
    model = build(NOISES["additive"])
    with pytest.raises(ValueError, match=message):
        evaluate(model, text(tokens), samples, **options)
    assert model.training


def test_perplexity() -> None:
    assert Evaluation(math.log(50), 10, 0).perplexity == pytest.approx(50)
    assert Evaluation(1e4, 10, 0).perplexity == math.inf


@pytest.mark.parametrize("options", [{}, {"samples": 4}, {"samples": 4, "weighting": "filter"}])
def test_double_precision_is_used_on_the_cpu_alone(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apple's GPUs have none."""
    model = LanguageModel(K, NoisyGRU(D, H, noise=NOISES["additive"]))
    to_cpu, double, on_cpu = Tensor.cpu, Tensor.double, set()

    def moved(tensor: Tensor) -> Tensor:
        copy = to_cpu(tensor).clone()
        on_cpu.add(id(copy))
        return copy

    def doubled(tensor: Tensor) -> Tensor:
        assert id(tensor) in on_cpu
        return double(tensor)

    monkeypatch.setattr(Tensor, "cpu", moved)
    monkeypatch.setattr(Tensor, "double", doubled)
    result = evaluate(model, torch.randint(K, (60,)), batch_size=B, **options)
    assert result.log_probs is not None and result.log_probs.dtype == torch.float64
