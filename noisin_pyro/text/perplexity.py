"""Perplexity from a loss in nats per token."""

from __future__ import annotations

import math

__all__ = ["perplexity"]


def perplexity(nats: float) -> float:
    """Computes exp(nats per token), which is infinite where it exceeds the largest float.

    Example:
        >>> round(perplexity(4.6), 2), perplexity(1e4)
        (99.48, inf)
    """
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
