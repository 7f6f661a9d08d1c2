"""Checks values from YAML against the types of options, and names these types in sentences."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

__all__ = ["as_plain", "describe_type", "fits"]

LARGEST = 2**1023  # a whole number from here on is no float


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. A whole number fits float; true and false fit bool alone.

    Example:
        >>> fits(1, float), fits(True, float), fits([1.0, 2], float | list[float])
        (True, False, True)
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if parts:  # a union
        return any(fits(value, part) for part in parts)
    if hint is float:
        return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)
    return type(value) is hint


def as_plain(value: Any) -> Any:
    """Converts scalars of NumPy and torch to Python's, also within a list or dictionary.

    Example:
        >>> import numpy
        >>> as_plain([numpy.float64(0.5), numpy.int64(3), numpy.str_("laplace"), "none"])
        [0.5, 3, 'laplace', 'none']
    """
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    if isinstance(value, dict):
        return {as_plain(key): as_plain(item) for key, item in value.items()}
    return value.item() if getattr(value, "shape", None) == () else value


def describe_type(hint: Any) -> str:
    """A type in words, for error messages.

    Example:
        >>> describe_type(float | list[float])
        'a number or a list of numbers'
    """
    words = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text",
        list: "a list of numbers", dict: "class_path and init_args", type(None): "null",
    }  # fmt: skip
    origin = get_origin(hint) or hint
    return words.get(origin) or " or ".join(describe_type(part) for part in get_args(hint))
