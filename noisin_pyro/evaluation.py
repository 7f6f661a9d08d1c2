"""Perplexity of a language model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.batching import streams, windows
from noisin_pyro.model import SequenceModel

__all__ = ["Evaluation", "evaluate"]


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
    batch_size: int = 10,
    unroll: int = 70,
) -> Evaluation:
    """Predicts each token from the ones before it.

    ``samples=0`` runs the mean path z = h. ``samples=S`` averages the predictive probabilities
    of S noisy RNNs, each of which carries its own state (the paper's "averaging at test
    time"); they run as one batch. Dropout is off in both, and the state is carried from one
    window to the next.

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
    stream = streams(tokens, batch_size, overlap=True)
    total, count, state = 0.0, 0, None
    device = next(model.parameters()).device
    with torch.no_grad(), _evaluating(model):
        for x, y in windows(stream, unroll):
            x, y = (part.to(device).repeat(1, copies) for part in (x, y))
            law, state = model.predict(x, state, sample=samples > 0)
            # (T, S·B) -> (T, S, B), then the mean over S of the probabilities
            log_probs = law.log_prob(y).double().view(len(y), copies, -1)
            total -= float((log_probs.logsumexp(1) - math.log(copies)).sum())
            count += y.numel() // copies
    return Evaluation(total / count, count, samples)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
