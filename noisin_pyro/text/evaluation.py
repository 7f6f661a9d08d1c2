"""Perplexity of a language model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from noisin_pyro.infer.antithetic import antithetic_noise, check_antithetic
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.sites import Readout, own_store
from noisin_pyro.text.batching import streams, windows

__all__ = ["Evaluation", "evaluate", "evaluating"]


@dataclass(frozen=True)
class Evaluation:
    """Held-out fit: ``nats`` per token over ``tokens`` targets, and how it was predicted."""

    nats: float
    tokens: int
    samples: int

    @property
    def perplexity(self) -> float:
        """exp(nats per token), infinite where that overflows."""
        return math.exp(self.nats) if self.nats < 709 else math.inf


def evaluate(
    model: SequenceModel,
    tokens: Tensor,
    samples: int = 0,
    *,
    antithetic: bool = False,
    readout: Readout = "noisy",
    batch_size: int = 10,
    unroll: int = 70,
) -> Evaluation:
    """Predicts each token from the ones before it.

    ``samples=0`` runs the mean path z = h. ``samples=S`` averages the predictive probabilities
    of S noisy RNNs, each of which carries its own state (the paper's "averaging at test
    time"); they run as one batch. Where γ or weights have priors each of the S draws its own, once
    for the whole text, and they run in turn. Dropout is off, but for a tied RNN's, whose masks
    belong to its noise and are drawn with it. The state is carried from one window to the next.

    Averaging estimates E[p(y_t | z_t)] with z drawn from the prior given the inputs. This is a
    proper predictive distribution: it sums to 1 and sees only the past. But it is p(y_t | y_<t)
    of the model only where the noise never reaches a later step, as with one layer and
    ``noise_to="output"``. Elsewhere the past observations say something about the states that
    the later ones grew from, and the noisy RNNs need the weights of a particle filter.

    Args:
        model: a model with an emission over tokens; its training mode is left as it was.
        tokens: the text, with shape (N,).
        samples: S.
        antithetic: draw the noise in pairs (ε, −ε) for a symmetric base, and (F⁻¹(u), F⁻¹(1 − u))
            for another base with an ``icdf`` F⁻¹. The probabilities of a pair err in opposite
            directions, so that their average varies less, at no cost. S must be even. The two of a
            pair share a draw of what has a prior; dropout's masks are not paired.
        readout: what the emission reads: ``"noisy"``, the state z of the top layer, as in
            training, or ``"mean"``, its mean h. The recurrence reads z either way.
        batch_size: the text is read as this many contiguous streams, each with a state of its
            own. Every token but the first is predicted, up to fewer than ``batch_size`` at the
            end.
        unroll: steps per window; it affects memory and speed, not the result (but for a tied
            noise, whose ε is drawn anew for each window).

    Returns:
        Nats per token, averaged over all predicted tokens.

    Raises:
        ValueError: if ``samples`` is negative or, with ``antithetic``, not even and at least 2; if
            then a noise has no reflection (:mod:`noisin_pyro.noise.reflection`); if the text is
            shorter than one batch.

    Example:
        >>> import torch
        >>> from noisin_pyro import LanguageModel, NoisyRNN
        >>> model = LanguageModel(10, NoisyRNN(4, 6))
        >>> tokens = torch.randint(10, (200,))
        >>> evaluate(model, tokens).tokens
        190
        >>> evaluate(model, tokens, samples=4, antithetic=True, readout="mean").samples
        4
    """
    if samples < 0:
        raise ValueError(f"samples must be 0 for the mean path or positive, got {samples}")
    if antithetic:
        check_antithetic(model, samples)
    copies, step = max(samples, 1), 2 if antithetic else 1
    stream = streams(tokens, batch_size, overlap=True).to(next(model.parameters()).device)
    total, count = 0.0, 0
    with torch.no_grad(), evaluating(model):
        if any(getattr(module, "_pyro_samples", ()) for module in model.modules()):
            draws = [_priors(model, stream[:1]) for _ in range(0, copies, step)]
            passes = [
                _log_probs(model, stream, unroll, step, samples > 0, antithetic, readout, values)
                for values in draws
            ]
        else:
            passes = [_log_probs(model, stream, unroll, copies, samples > 0, antithetic, readout)]
        for parts in zip(*passes):
            log_probs = torch.cat(parts, 1)
            total -= float((log_probs.logsumexp(1) - math.log(copies)).sum())
            count += log_probs.numel() // copies
    return Evaluation(total / count, count, samples)


def _log_probs(
    model: SequenceModel,
    stream: Tensor,
    unroll: int,
    copies: int,
    sample: bool,
    antithetic: bool,
    readout: Readout,
    given: dict[str, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Window by window the targets' log-probabilities, with shape (T, S, B), under S copies.

    ``given`` has the values of what is random in the model but its noise.
    """
    state = None
    for x, y in windows(stream, unroll):
        x, y = (part.repeat(1, copies) for part in (x, y))
        with _given(given):
            drawn = antithetic_noise(model, *x.shape[:2]) if antithetic else None
            emitted, state = model.predict(x, state, sample=sample, readout=readout, drawn=drawn)
        yield emitted.log_prob(y).double().view(len(y), copies, -1)  # (T, S·B) -> (T, S, B)


def _priors(model: SequenceModel, x: Tensor) -> dict[str, Tensor]:
    """A draw from the priors on γ and on weights, by the names of their sites."""
    with own_store():
        trace = poutine.trace(model.latents).get_trace(x, sample=False)
    nodes: dict[str, Any] = trace.nodes
    return {name: nodes[name]["value"] for name in trace.stochastic_nodes}


@contextmanager
def _given(values: dict[str, Tensor] | None) -> Iterator[None]:
    if values is None:
        yield
    else:
        with own_store(), poutine.condition(data=values):
            yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
