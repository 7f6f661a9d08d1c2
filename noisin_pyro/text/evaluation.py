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

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.sites import own_store
from noisin_pyro.text.batching import streams, windows
from noisin_pyro.text.perplexity import perplexity

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
        return perplexity(self.nats)


def evaluate(
    model: SequenceModel,
    tokens: Tensor,
    samples: int = 0,
    *,
    batch_size: int = 10,
    unroll: int = 70,
) -> Evaluation:
    """Predicts each token from the ones before it.

    ``samples=0`` runs the mean path z = h. ``samples=S`` averages the predictive probabilities
    of S noisy RNNs, each of which carries its own state (the paper's "averaging at test
    time"); they run as one batch. Where γ or weights have priors each of the S draws its own, once
    for the whole text, and they run in turn. Dropout is off, but for a tied RNN's, whose masks
    belong to its noise and are drawn with it. The state is carried from one window to the next.

    Args:
        model: a model with an emission over tokens; its training mode is left as it was.
        tokens: the text, with shape (N,).
        samples: S.
        batch_size: the text is read as this many contiguous streams, each with a state of its
            own. Every token but the first is predicted, up to fewer than ``batch_size`` at the
            end.
        unroll: steps per window; it affects memory and speed, not the result (but for a tied
            noise, whose ε is drawn anew for each window).

    Returns:
        Nats per token, averaged over all predicted tokens.

    Raises:
        ValueError: if ``samples`` is negative or the text is shorter than one batch.

    Example:
        >>> import torch
        >>> from noisin_pyro import LanguageModel, NoisyRNN
        >>> model = LanguageModel(10, NoisyRNN(4, 6))
        >>> evaluate(model, torch.randint(10, (200,))).tokens
        190
    """
    if samples < 0:
        raise ValueError(f"samples must be 0 for the mean path or positive, got {samples}")
    copies = max(samples, 1)
    stream = streams(tokens, batch_size, overlap=True).to(next(model.parameters()).device)
    total, count = 0.0, 0
    with torch.no_grad(), evaluating(model):
        if any(getattr(module, "_pyro_samples", ()) for module in model.modules()):
            draws = [_priors(model, stream[:1]) for _ in range(copies)]
            passes = [_log_probs(model, stream, unroll, 1, samples > 0, held) for held in draws]
        else:
            passes = [_log_probs(model, stream, unroll, copies, samples > 0)]
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
    held: dict[str, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Window by window the targets' log-probabilities, with shape (T, S, B), under S copies.

    ``held`` has the values of what is random in the model but its noise.
    """
    state = None
    for x, y in windows(stream, unroll):
        x, y = (part.repeat(1, copies) for part in (x, y))
        with _given(held):
            law, state = model.predict(x, state, sample=sample)
        yield law.log_prob(y).double().view(len(y), copies, -1)  # (T, S·B) -> (T, S, B)


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
