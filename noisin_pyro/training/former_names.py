"""Options of training that were once called otherwise, as old records and run folders have them."""

from __future__ import annotations

from typing import Any

__all__ = ["FEEDBACK", "renamed"]

#: ``noise_to`` was once called ``feedback``; its values by those of today.
FEEDBACK = {"both": True, "output": False, "recurrence": "only"}


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Options from a record or a run folder, with former names replaced by the present ones.

    Example:
        >>> renamed({"feedback": "only", "seed": 1})
        {'seed': 1, 'noise_to': 'recurrence'}
    """
    values = dict(values)
    if "feedback" in values:
        old = values.pop("feedback")
        values["noise_to"] = next((name for name, value in FEEDBACK.items() if value == old), old)
    return values
