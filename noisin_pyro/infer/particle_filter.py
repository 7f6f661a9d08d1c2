"""A particle filter over the noise of a sequence model.

K noisy RNNs run side by side and are weighted by how well they predicted what was observed:

    p̂(y_t | y_<t) = Σ_k W_{t-1}^k w_t^k,      W_t^k ∝ W_{t-1}^k w_t^k,

    w_t^k = p(y_t | z_t^k) p(ε_t^k) / q(ε_t^k),      q = p in the bootstrap filter.

Where the effective number of particles falls below a threshold they are resampled before the next
step. The product of the p̂(y_t | y_<t) is an unbiased estimate of p(y_1:T), so by Jensen's
inequality the expectation of its logarithm is a lower bound of log p(y_1:T).

Gordon, Salmond and Smith (1993), https://doi.org/10.1049/ip-f-2.1993.0015; Del Moral (2004),
https://doi.org/10.1007/978-1-4684-9393-1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisin_pyro.infer.antithetic import antithetic_noise
from noisin_pyro.infer.particles import (
    Particles,
    Resampling,
    effective_size,
    multinomial,
    systematic,
)
from noisin_pyro.lengths import Lengths, checked_lengths, filled, length_mask
from noisin_pyro.models.drawn import Drawn
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.weight_drop import WeightDrop
from noisin_pyro.parameters import priors_of
from noisin_pyro.sites import Readout

__all__ = ["Filtered", "check_filters", "filter_window", "refuse_priors"]

_SCHEMES = {"systematic": systematic, "multinomial": multinomial}


class Filtered(NamedTuple):
    """The result of a particle filter on a window of T steps.

    Attributes:
        log_probs: log p̂(y_t | y_<t), with shape (T, B), 0 past a sequence's end.
        effective: the effective number of particles after each step, with shape (T, B).
        particles: the particles after the last step, for the next window.
        resampled: the log-probability of the ancestors that were drawn before each step, up to a
            constant and differentiable, with shape (T, B); 0 where none were drawn.
    """

    log_probs: Tensor
    effective: Tensor
    particles: Particles
    resampled: Tensor


def filter_window(
    model: SequenceModel,
    x: Tensor,
    y: Tensor,
    particles: Particles,
    lengths: Lengths | None = None,
    *,
    ess_threshold: float = 0.5,
    resampling: Resampling = "systematic",
    sample: bool | None = None,
    readout: Readout = "noisy",
    antithetic: bool = False,
    drawn: Drawn | None = None,
    log_ratios: Tensor | None = None,
) -> Filtered:
    """Runs a particle filter over a window of the sequences.

    Windows change nothing: two windows in turn are the same filter as one long window, because the
    particles are resampled before a step and not after the last one.

    Args:
        model: the model, without priors on γ or on weights.
        x: inputs, with shape (T, B) or (T, B, \\*).
        y: targets, with shape (T, B) and the emission's event shape.
        particles: K particles, from :meth:`Particles.start` or from the window before.
        lengths: each sequence's number of steps, with shape (B,).
        ess_threshold: resample a sequence's particles where fewer than this fraction of K are
            effective; 0 never resamples and 1 does so before every step.
        resampling: how ancestors are drawn.
        sample: True draws noise, False runs the mean path; None draws while training.
        readout: see :meth:`SequenceModel.predict`.
        antithetic: draw the noise of particles k and k + K/2 as reflections of one another.
        drawn: noise of K·B sequences that a proposal has drawn; from the prior if None.
        log_ratios: log p(ε) − log q(ε) of ``drawn``, with shape (T, K·B).

    Raises:
        ValueError: as :func:`check_filters`, or if a shape or a length does not fit, also that of
            the emission for a single step.

    Example:
        >>> import pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model, tokens = LanguageModel(10, rnn), torch.randint(10, (9, 2))
        >>> particles = Particles.start(5, 2, rnn.weight_hh_l0)
        >>> filtered = filter_window(model, tokens[:-1], tokens[1:], particles)
        >>> filtered.log_probs.shape, filtered.particles.state.shape
        (torch.Size([8, 2]), torch.Size([1, 10, 6]))
    """
    count, batch = particles.log_weights.shape
    resamples = count > 1 and ess_threshold > 0
    check_filters(model, ess_threshold, resamples)
    noisy = model.training if sample is None else sample
    event_shape = y.shape[2:]
    if lengths is not None:
        lengths = checked_lengths(lengths, *x.shape[:2])
    x, y, mask = _copies(x, y, lengths, count)
    if drawn is None and noisy:
        draw = antithetic_noise if antithetic else SequenceModel.draw_noise
        drawn = draw(model, len(x), count * batch)
    # Without resampling the RNN need not wait for the weights: one call runs all steps.
    parts = [slice(t, t + 1) for t in range(len(x))] if resamples else [slice(0, len(x))]
    results: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in parts:
        inside = None if mask is None else mask[part]
        score = torch.zeros_like(particles.log_weights[:1])
        if resamples:
            particles, score = _resampled(particles, ess_threshold, resampling, inside)
        emitted, state = model.predict(
            x[part],
            particles.state,
            lengths=None if resamples or lengths is None else lengths.repeat(count),
            sample=sample,
            readout=readout,
            drawn=None if drawn is None else drawn.steps(part),
        )
        if event_shape != emitted.event_shape:
            wanted, given = (
                (len(x), batch, *shape) for shape in (emitted.event_shape, event_shape)
            )
            raise ValueError(f"y must have shape {wanted}, got {given}")
        weights = _likelihood(emitted, y[part]).unflatten(-1, (count, batch))  # (1 or T, K, B)
        if log_ratios is not None:
            weights = weights + log_ratios[part].unflatten(-1, (count, batch))
        if resamples and inside is not None and particles.state is not None:
            state = _where(inside.repeat(1, count).unsqueeze(-1), state, particles.state)
        log_probs, effective, log_weights = _reweighted(particles.log_weights, weights, inside)
        results.append((log_probs, effective, score.expand_as(log_probs)))
        particles = Particles(state, log_weights)
    log_probs, effective, resampled = (torch.cat(steps) for steps in zip(*results))
    return Filtered(log_probs, effective, particles, resampled)


def _copies(
    x: Tensor, y: Tensor, lengths: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs and observations of K copies of each sequence, with finite padding.

    Returns:
        x and y with K·B sequences, and the mask of steps within a sequence, with shape (T, B).
    """
    if y.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"y must have shape {tuple(x.shape[:2])} and the emission's event shape, got "
            f"{tuple(y.shape)}"
        )
    mask = None
    if lengths is not None:
        mask = length_mask(lengths.to(x.device), len(x))
        wide = [mask.reshape(mask.shape + (1,) * (part.dim() - 2)) for part in (x, y)]
        x, y = x.masked_fill(~wide[0], 0), filled(y, wide[1])
    x, y = (part.repeat(1, count, *[1] * (part.dim() - 2)) for part in (x, y))
    return x, y, mask


def _likelihood(emitted: Any, y: Tensor) -> Tensor:
    """log p(y_t | z_t) of each particle, with shape (S, K·B) for S steps.

    Args:
        emitted: the emission's distribution, with batch shape (S, K·B).
        y: the observations, with shape (S, K·B) and the event shape.

    Raises:
        ValueError: if the log-probability has another shape.
    """
    log_prob: Tensor = emitted.log_prob(y)
    if log_prob.shape != y.shape[:2]:
        steps, particles = y.shape[:2]
        raise ValueError(
            f"the emission's log_prob must have shape {(steps, particles)} for z of {steps} steps "
            f"and {particles} particles, got {tuple(log_prob.shape)}; a particle filter calls it "
            "step by step, so a mask of shape (T, B) does not fit, use RenyiELBO"
        )
    return log_prob


def _reweighted(
    log_weights: Tensor, weights: Tensor, inside: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights the particles by some steps, one after the other.

    After a step that no particle can explain, they have equal weights again.

    Args:
        log_weights: normalised, before these steps, with shape (K, B).
        weights: log w_t^k of S steps, with shape (S, K, B).
        inside: True where a step lies within its sequence, with shape (S, B).

    Returns:
        log p̂(y_t | y_<t) and the effective number of particles, each with shape (S, B), and the
        normalised log-weights after the last step, with shape (K, B).
    """
    if inside is not None:
        weights = weights.masked_fill(~inside.unsqueeze(1), 0)
    log_probs, effective = [], []
    for step in weights:
        joint = log_weights + step
        log_probs.append(joint.logsumexp(0))
        log_weights = (joint - log_probs[-1]).masked_fill(
            log_probs[-1] == -math.inf,
            -math.log(len(joint)),  # where the difference is NaN
        )
        effective.append(effective_size(log_weights.detach()))
    evidence = torch.stack(log_probs)
    if inside is not None:  # past the end it is 0 but for rounding
        evidence = evidence.masked_fill(~inside, 0)
    return evidence, torch.stack(effective), log_weights


def check_filters(model: SequenceModel, ess_threshold: float, resamples: bool = True) -> None:
    """Checks that a model's particles can be resampled.

    Args:
        model: the model.
        ess_threshold: the fraction of the particles.
        resamples: whether they ever are.

    Raises:
        ValueError: if the threshold lies outside [0, 1]; if γ or a weight has a prior; or, if
            particles are resampled, if something random is drawn once per sequence.
    """
    if not 0 <= ess_threshold <= 1:
        raise ValueError(
            f"ess_threshold must lie between 0 (never resample) and 1 (always), got {ess_threshold}"
        )
    refuse_priors(model)
    if not resamples:
        return
    masks = (model.rnn.dropout, model.dropout_input, model.dropout_output)
    once = {"tied=True": model.rnn.tied and any((*model.rnn.noise, *masks))}
    once["dropout_words"] = model.training and getattr(model, "dropout_words", 0) > 0
    once["weight drop"] = any(
        isinstance(part, WeightDrop) and part.training and part.p > 0 for part in model.modules()
    )
    for what, drawn in once.items():
        if drawn:
            raise ValueError(
                "a particle filter needs noise that is drawn anew at each step, got a model with "
                f"{what}, which is drawn once per sequence; use ess_threshold=0 or leave it out"
            )


def refuse_priors(model: SequenceModel) -> None:
    """Checks that γ and weights have no priors.

    Raises:
        ValueError: if γ or a weight has a prior.
    """
    for _, name in priors_of(model):
        raise ValueError(
            f"a particle filter needs a fixed or learned γ and weights, got a prior on {name}; "
            "a value drawn once would be lost in resampling"
        )


def _resampled(
    particles: Particles, threshold: float, resampling: Resampling, inside: Tensor | None
) -> tuple[Particles, Tensor]:
    """Resamples the particles of sequences that have few effective ones.

    Args:
        particles: K particles for each of B sequences.
        threshold: the fraction of K below which they are resampled.
        resampling: how ancestors are drawn.
        inside: True where the next step lies within its sequence, with shape (1, B).

    Returns:
        The particles, and the log-probability of the ancestors, with shape (1, B), 0 if there are
        none.
    """
    log_weights = particles.log_weights
    with torch.no_grad():
        where = effective_size(log_weights) < threshold * len(log_weights)
        where = where if inside is None else where & inside.squeeze(0)
    if not bool(where.any()):
        return particles, torch.zeros_like(log_weights[:1])
    ancestors = _SCHEMES[resampling](log_weights)
    score = log_weights.gather(0, ancestors).sum(0, keepdim=True).masked_fill(~where, 0)
    return particles.select(ancestors, where), score


def _where(mask: Tensor, new: Any, old: Any) -> Any:
    """The new state where the mask (1, K·B, 1) is True, else the old; parts (L, K·B, H)."""
    if isinstance(new, tuple):
        return tuple(_where(mask, *pair) for pair in zip(new, old))
    return torch.where(mask, new, old)
