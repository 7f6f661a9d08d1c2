"""Reads infinite perplexities from a record, where they are null. It imports no torch."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["with_infinities"]

#: The perplexities of a record by their keys, and what null stands for, as JSON has no infinity.
_NULLS = {
    **dict.fromkeys(("train", "valid", "test", "lowest"), math.inf),
    **dict.fromkeys(("train_perplexity", "valid_perplexity"), math.inf),
    **dict.fromkeys(("gain", "error"), math.nan),
}


def with_infinities(entry: dict[str, Any]) -> dict[str, Any]:
    """The ``object_hook`` to read a record with: perplexities that are null become infinite.

    Example:
        >>> import json
        >>> json.loads('{"valid": 20.0, "test": null}', object_hook=with_infinities)
        {'valid': 20.0, 'test': inf}
    """
    return {key: _NULLS.get(key) if value is None else value for key, value in entry.items()}
