"""Perplexity of a language model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from noisin_pyro.infer.antithetic import antithetic_noise, check_antithetic
from noisin_pyro.infer.contexts import draw_priors, given, has_priors
from noisin_pyro.infer.particle_filter import Filtered, check_filters, filter_window
from noisin_pyro.infer.particles import Particles
from noisin_pyro.models.sequence import SequenceModel, check_model
from noisin_pyro.modes import evaluating
from noisin_pyro.sites import Readout
from noisin_pyro.text.batching import streams, windows
from noisin_pyro.text.perplexity import perplexity

__all__ = ["Evaluation", "by_copy", "evaluate", "summarise"]


Weighting = Literal["equal", "filter"]
"""How the predictions of the noisy RNNs are weighted: equally, or by a particle filter."""


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes:
        nats: −log p̂(y_t | y_<t), averaged over the targets.
        tokens: the number of targets.
        samples: the number of noisy RNNs, 0 for the mean path.
        effective_samples: the effective number of particles, averaged over steps and streams;
            None without a particle filter.
        log_probs: log p̂(y_t | y_<t) of each target, with shape (N, B) for B streams, on the CPU.
            The differences of two models, token by token, give a paired standard error.
    """

    nats: float
    tokens: int
    samples: int
    effective_samples: float | None = None
    log_probs: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity(self) -> float:
        """exp(nats per token), infinite if that overflows."""
        return perplexity(self.nats)

    @property
    def bits(self) -> float:
        """Bits per token, which is per character if the tokens are characters."""
        return self.nats / math.log(2)

    @property
    def log_evidence(self) -> float:
        """Σ_t log p̂(y_t | y_<t) over all streams.

        After ``weighting="filter"`` its exponential is an unbiased estimate of p(y) under the
        model, so that on average it lies below log p(y). Otherwise it is the log-probability of
        the text under another predictive distribution; see :func:`evaluate`.
        """
        return -self.nats * self.tokens


def evaluate(
    model: SequenceModel,
    tokens: Tensor,
    samples: int = 0,
    *,
    antithetic: bool = False,
    readout: Readout = "noisy",
    weighting: Weighting = "equal",
    ess_threshold: float = 0.5,
    batch_size: int = 10,
    unroll: int = 70,
) -> Evaluation:
    """Predicts each token from the ones before it.

    ``samples=0`` runs the mean path z = h. ``samples=S`` averages the predictive probabilities
    of S noisy RNNs, each of which carries its own state (the paper's "averaging at test
    time"); they run as one batch. If γ or weights have priors, each noisy RNN draws its own from
    these once for the whole text, and the RNNs run one after another. Dropout is off, except in a
    tied RNN, whose dropout masks are drawn with its noise. The state is carried from window to
    window.

    Averaging estimates E[p(y_t | z_t)] with z drawn from the prior given the inputs. This is a
    proper predictive distribution: it sums to 1 and sees only the past. But it is p(y_t | y_<t)
    of the model only if the noise never reaches a later step, as with one layer and
    ``noise_to="output"``. Otherwise past observations are informative about past noise, and the
    noisy RNNs must be weighted by a particle filter: ``weighting="filter"``
    (:mod:`noisin_pyro.infer.particle_filter`), which calls the model once per step.

    Args:
        model: a model with an emission over tokens; its training mode is left as it was.
        tokens: the text, with shape (N,).
        samples: S.
        antithetic: draw the noise in pairs (ε, −ε) for a symmetric base, and (F⁻¹(u), F⁻¹(1 − u))
            for another base with an ``icdf`` F⁻¹. The probabilities of a pair err in opposite
            directions, so that their average varies less, at no cost. S must be even. A pair shares
            its draws of γ and weights that have priors; dropout masks are not paired.
        readout: what the emission reads: ``"noisy"``, the state z of the top layer, as in
            training, or ``"mean"``, its mean h. The recurrence reads z either way.
        weighting: ``"equal"``, or ``"filter"``: weigh each noisy RNN by how well it has predicted
            the text so far, and resample them where the weights are uneven. The predictions
            then converge to p(y_t | y_<t) of the model as S grows. Refused with a prior on γ or on
            weights and, if they are ever resampled, with a tied noise.
        ess_threshold: the fraction of S below which the effective number of particles must fall
            for them to be resampled; 0 never resamples.
        batch_size: the text is read as this many contiguous streams, each with a state of its
            own. Every token but the first is predicted, up to fewer than ``batch_size`` at the
            end.
        unroll: steps per window; it affects memory and speed, not the result (but for a tied
            noise, whose ε is drawn anew for each window).

    Returns:
        Nats per token, averaged over all predicted tokens, and the log-probability of each.

    Raises:
        TypeError: if ``model`` is no :class:`SequenceModel`.
        ValueError: if ``samples`` is negative or, with ``antithetic``, not even and at least 2; if
            then a noise has no reflection (:mod:`noisin_pyro.noise.reflection`); if ``weighting``
            is unknown, or ``"filter"`` with ``samples=0`` or a model that it refuses; if another
            argument is out of range; or if the text is shorter than one batch.

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
    check_model("evaluate", model)
    if samples < 0:
        raise ValueError(f"samples must be 0 for the mean path or positive, got {samples}")
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be 'equal' or 'filter', got {weighting!r}")
    if weighting == "filter" and samples < 1:
        raise ValueError("weighting='filter' weighs noisy RNNs, so samples must be at least 1")
    if antithetic:
        check_antithetic(model, samples)
    stream = streams(tokens, batch_size, overlap=True).to(model.rnn.like.device)
    with torch.no_grad(), evaluating(model):
        if weighting == "filter":
            check_filters(model, ess_threshold, samples > 1 and ess_threshold > 0)
            filtered = list(
                _filtered(model, stream, unroll, samples, antithetic, readout, ess_threshold)
            )
            sizes = torch.cat([part.effective for part in filtered])
            effective = float(sizes.cpu().double().mean())
            log_probs = [part.log_probs.cpu().double() for part in filtered]
            return summarise(log_probs, samples, effective)
        passes = by_copy(model, stream, unroll, samples, antithetic=antithetic, readout=readout)
        log_probs = [window.logsumexp(1) - math.log(window.shape[1]) for window in passes]
    return summarise(log_probs, samples)


def summarise(log_probs: list[Tensor], samples: int, effective: float | None = None) -> Evaluation:
    """The evaluation of a text from its windows' log-probabilities, each with shape (T, B)."""
    total, count = 0.0, 0
    for window in log_probs:
        total -= float(window.sum())
        count += window.numel()
    return Evaluation(total / count, count, samples, effective, torch.cat(log_probs))


def _filtered(
    model: SequenceModel,
    stream: Tensor,
    unroll: int,
    count: int,
    antithetic: bool,
    readout: Readout,
    ess_threshold: float,
) -> Iterator[Filtered]:
    """Runs a particle filter with ``count`` particles; yields its result for each window."""
    particles = Particles.start(count, stream.shape[1], model.rnn.like)
    for x, y in windows(stream, unroll):
        filtered = filter_window(
            model,
            x,
            y,
            particles,
            ess_threshold=ess_threshold,
            sample=True,
            readout=readout,
            antithetic=antithetic,
        )
        particles = filtered.particles
        yield filtered


def by_copy(
    model: SequenceModel,
    stream: Tensor,
    unroll: int,
    samples: int,
    *,
    antithetic: bool = False,
    readout: Readout = "noisy",
) -> Iterator[Tensor]:
    """Yields each window's log-probabilities under each noisy RNN, with shape (T, S, B).

    S is 1 for the mean path. An antithetic pair is next to each other in dimension 1, so that the
    first 2k entries are k pairs. If γ or weights have priors, the noisy RNNs, or pairs, run one
    after another.
    """
    step, sample = 2 if antithetic else 1, samples > 0
    if has_priors(model):
        draws = [draw_priors(model, stream[:1]) for _ in range(0, max(samples, 1), step)]
        passes = [
            _log_probs(model, stream, unroll, step, sample, antithetic, readout, values)
            for values in draws
        ]
        for parts in zip(*passes):
            yield torch.cat(parts, 1)
    else:
        copies = max(samples, 1)
        yield from _log_probs(model, stream, unroll, copies, sample, antithetic, readout)


def _log_probs(
    model: SequenceModel,
    stream: Tensor,
    unroll: int,
    copies: int,
    sample: bool,
    antithetic: bool,
    readout: Readout,
    values: dict[str, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields each window's log-probabilities under S copies, with shape (T, S, B).

    ``values`` are values of γ and of weights that have priors, by the names of their sites.
    """
    state = None
    for x, y in windows(stream, unroll):
        x, y = (part.repeat(1, copies) for part in (x, y))
        with given(values):
            drawn = antithetic_noise(model, *x.shape[:2]) if antithetic else None
            emitted, state = model.predict(x, state, sample=sample, readout=readout, drawn=drawn)
        log_probs = emitted.log_prob(y).cpu().double()  # Apple's GPUs have no double precision
        log_probs = log_probs.view(len(y), copies, -1)  # (T, S·B) -> (T, S, B)
        if antithetic:  # copy i and its antithetic copy i + S/2 become neighbours
            log_probs = log_probs.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        yield log_probs
