"""Evaluation by number of averaged noisy RNNs, and standard errors of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from noisin_pyro.infer.antithetic import check_antithetic
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.modes import evaluating
from noisin_pyro.sites import Readout
from noisin_pyro.text.batching import streams
from noisin_pyro.text.evaluation import Evaluation, by_copy, summarise

__all__ = ["Difference", "evaluate_each", "paired_difference"]


def evaluate_each(
    model: SequenceModel,
    tokens: Tensor,
    samples: Sequence[int],
    *,
    antithetic: bool = False,
    readout: Readout = "noisy",
    batch_size: int = 10,
    unroll: int = 70,
) -> dict[int, Evaluation]:
    """:func:`~noisin_pyro.text.evaluation.evaluate` for several numbers of noisy RNNs in one pass.

    ``max(samples)`` noisy RNNs run, and the average over S is that over the first S of them, so
    that the results for different S share their noise.

    Args:
        model, tokens, antithetic, readout, batch_size, unroll: as in ``evaluate``.
        samples: the numbers S.

    Returns:
        The result of ``evaluate`` for each S.

    Raises:
        ValueError: if there is no S, one is below 1 or, with ``antithetic``, odd; or as
            ``evaluate`` raises.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> noise = Additive(dist.Normal(0.0, 1.0))
        >>> model = LanguageModel(10, NoisyRNN(4, 6, noise=noise, spread=0.3))
        >>> fits = evaluate_each(model, torch.randint(10, (200,)), [2, 4], antithetic=True)
        >>> [fits[S].samples for S in (2, 4)]
        [2, 4]
    """
    if not samples or min(samples) < 1:
        raise ValueError(f"samples must be numbers of noisy RNNs of at least 1, got {samples}")
    if antithetic:
        for count in samples:
            check_antithetic(model, count)
    stream = streams(tokens, batch_size, overlap=True).to(model.rnn.like.device)
    log_probs: dict[int, list[Tensor]] = {count: [] for count in samples}
    with torch.no_grad(), evaluating(model):
        for window in by_copy(
            model, stream, unroll, max(samples), antithetic=antithetic, readout=readout
        ):
            sums = window.logcumsumexp(1)  # (T, S, B)
            for count, parts in log_probs.items():
                parts.append(sums[:, count - 1] - math.log(count))
    return {count: summarise(parts, count) for count, parts in log_probs.items()}


class Difference(NamedTuple):
    """A mean difference per token, in nats, and its standard error."""

    mean: float
    error: float


def paired_difference(log_probs: Tensor, others: Tensor, block: int = 32) -> Difference:
    """By how many nats per token one prediction of a text is better than another.

    Paired: both predict the same tokens, and the difference varies far less over the tokens than
    either prediction does. Neighbouring tokens are not independent, so the standard error is that
    of the means of blocks of consecutive tokens (batch means), which nearly are.

    Args:
        log_probs: log p̂(y_t | y_<t) of each target, with shape (N, B) for B streams.
        others: the log-probabilities of the other prediction, with the same shape.
        block: the number of consecutive tokens in a block. Tokens at the end of a stream that fill
            no block count in the mean and not in the error.

    Returns:
        The difference, positive if ``log_probs`` is higher on average.

    Raises:
        ValueError: if the shapes differ or there are fewer than two whole blocks.

    Example:
        >>> import torch
        >>> better = torch.tensor([[-1.0], [-1.5], [-2.0], [-1.5]])
        >>> paired_difference(better, torch.full((4, 1), -2.0), block=2)
        Difference(mean=0.5, error=0.25)
    """
    if log_probs.shape != others.shape:
        raise ValueError(
            f"both predictions must be of the same tokens, got shapes {tuple(log_probs.shape)} and "
            f"{tuple(others.shape)}"
        )
    differences = (log_probs - others).double()
    whole = len(differences) // block
    means = differences[: whole * block].unflatten(0, (whole, block)).mean(1).flatten()
    if len(means) < 2:
        raise ValueError(
            f"a standard error needs two blocks of {block} tokens, got a text with {len(means)}; "
            "give a smaller block"
        )
    return Difference(float(differences.mean()), float(means.std()) / math.sqrt(len(means)))
