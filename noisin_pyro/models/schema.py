"""The entries that a model's description may have: their names, types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch

from noisin_pyro.nn.registry import RNNS
from noisin_pyro.noise.affine import Additive, Multiplicative
from noisin_pyro.tokens import TOKENS

__all__ = [
    "CLASSES",
    "DTYPES",
    "FORMAT",
    "LEARNED",
    "NOISE",
    "NOISES",
    "NUMBER",
    "RATES",
    "SIZES",
    "SPREAD",
    "check_description",
    "checked",
]

FORMAT = 1
"""The version of the format, raised if the meaning of an entry changes, but not for a new entry."""

MOST_LAYERS = 1000

#: The dtypes of weights and of a base by their names.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
#: The module of each RNN by the name of its class.
CLASSES = {entry.kind: entry.module for entry in RNNS.values()}
NOISES = {"Additive": Additive, "Multiplicative": Multiplicative}

#: The allowed types of each entry.
Kinds = Mapping[str, type | tuple[type, ...]]
NUMBER = (int, float)
_WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "entries by their names",
    NoneType: "null",
}
RATES = dict.fromkeys(("dropout_words", "dropout_input", "dropout_output"), NUMBER)
MODEL: Kinds = {
    **{"format": int, "dtype": str, "vocab_size": int, "tokens": str, "tied_weights": bool},
    **RATES,
    **{"input_noise": (dict, NoneType), "input_spread": (*NUMBER, dict), "rnn": dict},
}
SIZES = ("input_size", "hidden_size", "num_layers")
RNN: Kinds = {
    **{"class": str, "nonlinearity": str, **dict.fromkeys(SIZES, int), "bias": bool},
    **{"dropout": NUMBER, "zoneout": list, "weight_drop": NUMBER},
    **{"sites": (str, NoneType), "tied": bool, "noise_to": str, "noise": list, "spread": list},
}
NOISE: Kinds = {"class": str, "base": dict, "mean": NUMBER, "stddev": NUMBER}
SPREAD: Kinds = {"learned": dict, "prior": dict, "tensor": bool, "parameter": bool}
LEARNED: Kinds = {"init": NUMBER, "lower": NUMBER, "per": str}


def check_description(values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the values of a model and of its RNN, but not those of its noises and spreads.

    Args:
        values: the description.

    Returns:
        A copy of the model's entries and a copy of the RNN's.

    Raises:
        ValueError: if an entry is unknown or missing, or a value has another type or range.
    """
    model = checked(values, "the description", MODEL, ("format", "vocab_size", "rnn"))
    rnn = checked(model["rnn"], "its rnn", RNN, ("class", *SIZES))
    _check_values(model, rnn)
    return model, rnn


def checked(values: Any, what: str, kinds: Kinds, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A copy of ``values`` after a check of names and types.

    Args:
        values: the values, expected to be a dict.
        what: their name in errors.
        kinds: the allowed types of each entry.
        required: the entries that must be there.

    Raises:
        ValueError: if an entry is unknown, has another type, or is missing.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} must have entries by their names, got {str(values)[:60]!r}")
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{what} has an unknown entry {name[:60]!r}")
        kind = kinds[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            one_of = list(kind) if isinstance(kind, tuple) else [kind]
            if float in one_of:
                one_of.remove(int)
            allowed = " or ".join(_WORDS[one] for one in one_of)
            raise ValueError(f"{name} of {what} must be {allowed}, got {str(value)[:60]!r}")
    for name in required:
        if name not in values:
            raise ValueError(f"{what} has no entry {name!r}")
    return dict(values)


def _check_values(model: dict[str, Any], rnn: dict[str, Any]) -> None:
    """Checks the entries of a description, whose types are known to be right.

    Raises:
        ValueError: if the format, a class, a size, a dtype, the kind of tokens, or the number of
            noises or spreads is not allowed.
    """
    if model["format"] != FORMAT:
        raise ValueError(
            f"its format is {model['format']}, and this noisin_pyro reads {FORMAT}; take the "
            "version that wrote it"
        )
    if rnn["class"] not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"unknown RNN {rnn['class']!r}; the known ones are {known}")
    for name, size in (("vocab_size", model["vocab_size"]), *((n, rnn[n]) for n in SIZES)):
        most = MOST_LAYERS if name == "num_layers" else 2**31 - 1
        if not 1 <= size <= most:
            raise ValueError(f"{name} must lie in 1 to {most:,}, got {size}")
    if model.get("dtype", "float32") not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {model['dtype']!r}")
    if model.get("tokens", "words") not in TOKENS:
        known = ", ".join(TOKENS)
        raise ValueError(f"tokens must be one of {known}, got {model['tokens']!r}")
    for name in ("noise", "spread"):
        if name in rnn and len(rnn[name]) != rnn["num_layers"]:
            raise ValueError(f"{name} must have one entry a layer, got {len(rnn[name])}")
