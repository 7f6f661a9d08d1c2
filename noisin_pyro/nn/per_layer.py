"""One value for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["per_layer"]


def per_layer(given: Any, layers: int, what: str) -> list[Any]:
    """A list with one value for each layer, from one value for all or a sequence.

    Args:
        given: the value, or a sequence of values.
        layers: the number of layers.
        what: the name of the argument, for the error.

    Raises:
        ValueError: if a sequence's length is not the number of layers.

    Example:
        >>> per_layer(0.5, 2, "spread"), per_layer([0.5, 0.3], 2, "spread")
        ([0.5, 0.5], [0.5, 0.3])
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * layers
    if len(given) != layers:
        raise ValueError(
            f"{what} needs one value or one for each of the {layers} layers, got {len(given)}"
        )
    return list(given)
