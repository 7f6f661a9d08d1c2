"""Weighted particles: their effective number and their resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from noisin_pyro.models.sequence import detach_state
from noisin_pyro.nn.forms import map_state
from noisin_pyro.noise.moved import widest

__all__ = ["Particles", "Resampling", "effective_size", "multinomial", "systematic"]

Resampling = Literal["systematic", "multinomial"]
"""How ancestors are drawn: with one uniform number for all, or independently."""


@dataclass(frozen=True)
class Particles:
    """K noisy RNNs for each of B sequences, between two steps.

    Attributes:
        state: the carried state as the model returns it, each part with shape (L, K·B, H);
            particle k of sequence b stands in column k·B + b. None before the first step.
        log_weights: logarithms of weights that sum to 1 over the particles of a sequence, with
            shape (K, B).
    """

    state: Any
    log_weights: Tensor

    @classmethod
    def start(cls, count: int, batch: int, like: Tensor) -> Particles:
        """Particles with equal weights and the RNN's default initial state.

        Args:
            count: K.
            batch: B.
            like: a tensor whose dtype and device the weights get.
        """
        single = torch.promote_types(like.dtype, torch.float32)  # log K rounds in half precision
        log_weights = torch.full((count, batch), -math.log(count), dtype=single, device=like.device)
        return cls(None, log_weights)

    def detach(self) -> Particles:
        """The particles without their graph; :func:`detach_state` calls this."""
        return Particles(detach_state(self.state), self.log_weights.detach())

    def select(self, ancestors: Tensor, where: Tensor) -> Particles:
        """Replaces the particles of some sequences by copies with equal weights.

        Args:
            ancestors: indices into the particles, with shape (K, B).
            where: the sequences to resample, with shape (B,).
        """
        count, batch = self.log_weights.shape
        every = torch.arange(count, device=ancestors.device).unsqueeze(1)
        ancestors = torch.where(where, ancestors, every)
        columns = (ancestors * batch + torch.arange(batch, device=ancestors.device)).flatten()
        equal = torch.full_like(self.log_weights, -math.log(count))
        state = map_state(self.state, lambda part: part.index_select(-2, columns))
        return Particles(state, torch.where(where, equal, self.log_weights))


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / Σ_k W_k², between 1 (one particle has all the weight) and K (equal weights).

    Kong, Liu and Wong (1994), https://doi.org/10.1080/01621459.1994.10476469.

    Args:
        log_weights: normalised, with shape (K, B).

    Returns:
        With shape (B,).

    Example:
        >>> effective_size(torch.tensor([[0.5], [0.5], [0.0]]).log())
        tensor([2.])
    """
    return (-(2 * log_weights).logsumexp(0)).exp()


def systematic(log_weights: Tensor) -> Tensor:
    """Ancestors by systematic resampling: particle k gets K·W_k copies, rounded up or down.

    Carpenter, Clifford and Fearnhead (1999), https://doi.org/10.1049/ip-rsn:19990255.

    Args:
        log_weights: normalised, with shape (K, B).

    Returns:
        Indices in increasing order, with shape (K, B).

    Example:
        >>> systematic(torch.tensor([[0.5], [0.0], [0.25], [0.25]]).log()).flatten()
        tensor([0, 0, 2, 3])
    """
    count, batch = log_weights.shape
    wide = widest(log_weights.device)
    cumulative = log_weights.detach().to(wide).exp().cumsum(0)
    start = torch.rand(batch, dtype=wide, device=log_weights.device)
    every = torch.arange(count, device=log_weights.device).unsqueeze(1)
    points = (every + start) / count * cumulative[-1]
    found = torch.searchsorted(cumulative.T.contiguous(), points.T.contiguous(), right=True)
    return found.T.clamp(max=count - 1)


def multinomial(log_weights: Tensor) -> Tensor:
    """Ancestors drawn independently, particle k with probability W_k.

    Args:
        log_weights: normalised, with shape (K, B).

    Returns:
        Indices, with shape (K, B).

    Example:
        >>> multinomial(torch.tensor([[0.0], [1.0], [0.0]]).log()).flatten()
        tensor([1, 1, 1])
    """
    weights = log_weights.detach().exp().T
    return torch.multinomial(weights, len(log_weights), replacement=True).T
