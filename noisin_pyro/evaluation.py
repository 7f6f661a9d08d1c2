"""Perplexity of a language model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.nn import PyroModule
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
    time"); they run as one batch. Where a spread or a weight has a prior, each of the S has its own
    draw of it for the whole text, and they run one after the other. Dropout is off, but for the
    masks of a ``tied`` RNN, which belong to its noise and are drawn with it. The state is carried
    from one window to the next.

    Args:
        model: a model with an emission over tokens; its training mode is left as it was.
        tokens: the text, with shape (N,).
        samples: S.
        batch_size: the text is read as this many contiguous streams, each with a state of its
            own. Every token but the first is predicted, up to fewer than ``batch_size`` at the
            end.
        unroll: steps per window; it affects memory and speed, not the result (but for a tied
            noise, whose ε and masks are drawn anew for each window).

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
    stream = streams(tokens, batch_size, overlap=True)
    total, count = 0.0, 0
    with torch.no_grad(), evaluating(model):
        runs, copies = [model.predict], max(samples, 1)
        if samples and _with_priors(model):
            runs, copies = [_held(model) for _ in range(samples)], 1
        readers = [_log_probs(run, model, stream, unroll, copies, samples > 0) for run in runs]
        for parts in zip(*readers):
            log_probs = torch.cat(parts, 1)  # (T, S, B), then the mean over S of the probabilities
            total -= float((log_probs.logsumexp(1) - math.log(log_probs.shape[1])).sum())
            count += log_probs[:, 0].numel()
    return Evaluation(total / count, count, samples)


def _log_probs(
    predict: Any, model: SequenceModel, stream: Tensor, unroll: int, copies: int, sample: bool
) -> Iterator[Tensor]:
    """Of each window, with shape (T, copies, B)."""
    device, state = next(model.parameters()).device, None
    for x, y in windows(stream, unroll):
        x, y = (part.to(device).repeat(1, copies) for part in (x, y))
        law, state = predict(x, state, sample=sample)
        yield law.log_prob(y).double().view(len(y), copies, -1)


def _with_priors(model: SequenceModel) -> list[PyroModule]:
    """Its modules of which a spread or a weight has a prior."""
    return [m for m in model.modules() if isinstance(m, PyroModule) and m._pyro_samples]


def _held(model: SequenceModel) -> Any:
    """``model.predict`` with one draw of what has a prior."""
    x = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    nodes = poutine.trace(model.predict).get_trace(x, sample=True).nodes
    names = {m._pyro_get_fullname(name) for m in _with_priors(model) for name in m._pyro_samples}
    drawn: dict[str, Any] = {name: nodes[name]["value"] for name in names & nodes.keys()}
    return poutine.condition(model.predict, data=drawn)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in eval mode; its training mode is left as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
