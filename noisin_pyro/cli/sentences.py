"""One sentence in place of jsonargparse's message about a wrong argument."""

from __future__ import annotations

import os
import re
import shlex

from noisin_pyro.text.sources import NAMES, PREFIX

__all__ = ["sentence_of"]

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def sentence_of(command: str, message: str) -> str:
    """The option, the rule it breaks and its value, from jsonargparse's message.

    Args:
        command: the name of the command that was typed.
        message: the message of the exception.
    """
    unknown = re.match(r"argument COMMAND: invalid choice: ('.*?') \(choose from (.*)\)", message)
    if unknown:
        known = unknown[2].replace("'", "")
        return f"unknown command {unknown[1]}; the known ones are {known}"
    surplus = re.match(r"unrecognized arguments: (?!-)(.*?)(?: --.*)?$", message, re.DOTALL)
    if surplus and (option := _option_of(command, surplus[1])) is not None:
        return f"{message}; give it as --{option}{shlex.quote(surplus[1])}"
    if surplus and command in ("train", "tune") and re.fullmatch(r"[\d. ]+", surplus[1]):
        return f"{message}; give several values as a list, such as --spread '[0.5, 0.4]'"
    match = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not match:
        message = message.removeprefix("argument ")
        return re.sub(r"(arguments are required: )\w+\.", r"\1", message)
    key, text = match.groups()
    value = re.search(r".*(?:Got value|Given value): (.*)$", text, re.DOTALL)
    if not value:
        return f"{key}: {text}"
    choices = re.search(r"Literal\[(.*?)\]", text)
    if choices:
        known = choices[1].replace("'", "")
        return f"unknown {key} {value[1]!r}; the known ones are {known}"
    return f"{key} must be {_kind(command, key, text)}, got {value[1]}"


def _option_of(command: str, text: str) -> str | None:
    """What was probably left out before an argument, such as ``"corpus "`` before a path."""
    if re.match(r"\w+=", text):  # epochs=3
        return ""
    if command == "generate":
        return "prompt "
    if command == "evaluate" and text in ("train", "valid", "test"):
        return "split "
    if command in ("train", "tune") and text.endswith((".yaml", ".yml")):
        return "config "
    named = text in NAMES or text.startswith(PREFIX)
    is_corpus = named or text.endswith(".txt") or os.path.exists(text)
    return "corpus " if is_corpus and command not in ("corpus", "completion") else None


def _kind(command: str, key: str, text: str) -> str:
    """The type of an option in words."""
    from noisin_pyro.training.config import HINTS
    from noisin_pyro.training.option_types import describe_type

    if command in ("train", "tune") and key in HINTS:
        return describe_type(HINTS[key])
    types = re.search(r"Subtypes: \[(.*)\]\s+Errors", text)
    types = types or re.search(r"Expected an? (.*?)\.", text)
    names = set(re.sub(r"<class '(\w+)'>", r"\1", types[1]).split(", ")) if types else {"?"}
    return " or ".join(_TYPES.get(name, name) for name in sorted(names - {"NoneType"}))
