"""Held-out text weighted by a particle filter."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import Additive, LanguageModel, NoisyGRU, NoisyLSTM, SequenceModel
from noisin_pyro.text.batching import streams
from noisin_pyro.text.evaluation import by_copy, evaluate
from tests.helpers import linear_gaussian
from tests.infer.known_models import kalman

B = 2


class Scalar(nn.Module):
    """A real-valued text: (T, B) -> (T, B, 1), and an emission over (T, B)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)


def gaussian_text(length: int) -> tuple[SequenceModel, Tensor]:
    model = linear_gaussian()
    inner = model.emission

    class Emission(nn.Module):
        def forward(self, z: Tensor) -> Any:
            mean = z @ inner.weight.T + inner.bias
            return dist.Normal(mean.squeeze(-1), inner.log_scale.exp().squeeze(-1))

    text = SequenceModel(Scalar(), model.rnn, Emission())
    time = torch.arange(length, dtype=torch.float64)
    return text, 1.2 * (0.5 * time).cos() + 0.8


def exact(tokens: Tensor) -> Tensor:
    """log p(y_t | y_<t) of two streams with shape (T, B), by the Kalman filter."""
    share = (len(tokens) - 1) // B
    columns = [tokens[b * share : (b + 1) * share + 1] for b in range(B)]
    return torch.stack([kalman(linear_gaussian(), c[:-1], c[1:]) for c in columns], 1)


@pytest.mark.parametrize("antithetic", [False, True])
def test_a_text_against_kalman(antithetic: bool) -> None:
    """The standard deviation of the sum over 60 steps is 0.35 at most, its bound 10 of them out;
    averaging without weights is off by much more."""
    model, tokens = gaussian_text(61)
    known = exact(tokens)
    options: Any = {"batch_size": B, "antithetic": antithetic}
    result = evaluate(model, tokens, 1000, weighting="filter", unroll=7, **options)
    assert result.log_evidence == pytest.approx(float(known.sum()), abs=3.5)
    torch.testing.assert_close(result.log_probs, known, rtol=0, atol=0.35)
    assert 1 < result.effective_samples < 1000
    equal = evaluate(model, tokens, 1000, **options)
    assert equal.effective_samples is None
    assert abs(equal.log_evidence - float(known.sum())) > 7


@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU])
def test_one_particle_is_one_noisy_rnn(kind: Any) -> None:
    model = LanguageModel(7, kind(3, 4, 2, noise=Additive(dist.Normal(0.0, 1.0)))).double()
    tokens = torch.randint(7, (41,))
    torch.manual_seed(1)
    one = evaluate(model, tokens, 1, batch_size=B, unroll=99)
    torch.manual_seed(1)
    other = evaluate(model, tokens, 1, weighting="filter", batch_size=B, unroll=99)
    assert one == type(one)(other.nats, other.tokens, 1)
    assert other.effective_samples == 1.0
    assert torch.equal(one.log_probs, other.log_probs)


def test_particles_that_are_never_resampled_are_weighted_sequences() -> None:
    """With a noise drawn once per sequence too; the same seed draws the same noise."""
    rnn = NoisyLSTM(3, 4, noise=Additive(dist.Normal(0.0, 1.0)), spread=1.5, tied=True)
    model = LanguageModel(7, rnn).double().eval()
    tokens = torch.randint(7, (41,))
    torch.manual_seed(1)
    options: Any = {"weighting": "filter", "ess_threshold": 0.0, "batch_size": B}
    filtered = evaluate(model, tokens, 5, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        copies = torch.cat(list(by_copy(model, streams(tokens, B, overlap=True), 70, 5)))
    log_evidence = (copies.sum(0).logsumexp(0) - math.log(5)).sum()  # (T, S, B) -> ()
    assert filtered.log_evidence == pytest.approx(float(log_evidence), rel=1e-9)
    assert filtered.effective_samples < 5


def test_a_filter_of_a_training_model_with_dropped_words() -> None:
    """An evaluation has dropout off, whatever the mode of the model was."""
    rnn = NoisyLSTM(3, 4, noise=Additive(dist.Normal(0.0, 1.0)))
    model, tokens = LanguageModel(7, rnn, dropout_words=0.5), torch.randint(7, (41,))
    results = []
    for mode in (True, False):
        torch.manual_seed(1)
        results.append(evaluate(model.train(mode), tokens, 4, weighting="filter", batch_size=B))
        assert model.training is mode
    assert results[0] == results[1]


def test_log_probabilities_are_those_of_the_average() -> None:
    model = LanguageModel(7, NoisyGRU(3, 4, noise=Additive(dist.Normal(0.0, 1.0)))).double()
    for samples in (0, 4):
        result = evaluate(model, torch.randint(7, (41,)), samples, batch_size=B, unroll=7)
        assert result.log_probs.shape == (20, B)
        assert float(-result.log_probs.mean()) == pytest.approx(result.nats, rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (0, {"weighting": "filter"}, "samples must be at least 1"),
        (2, {"weighting": "smoother"}, "weighting must be 'equal' or 'filter', got 'smoother'"),
        (2, {"weighting": "filter", "ess_threshold": -1.0}, "got -1.0"),
        (3, {"weighting": "filter", "antithetic": True}, "even and at least 2, got 3"),
    ],
)
def test_refusals(samples: int, options: dict[str, Any], message: str) -> None:
    model = LanguageModel(7, NoisyGRU(3, 4, noise=Additive(dist.Normal(0.0, 1.0))))
    with pytest.raises(ValueError, match=message):
        evaluate(model, torch.randint(7, (41,)), samples, batch_size=B, **options)
