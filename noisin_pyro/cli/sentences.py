"""One sentence in place of what jsonargparse says of a wrong argument."""

from __future__ import annotations

import re

__all__ = ["sentence_of"]


def sentence_of(message: str) -> str:
    """The value and the rule in what jsonargparse says of a wrong argument."""
    command = re.match(r"argument COMMAND: invalid choice: ('.*?') \(choose from (.*)\)", message)
    if command:
        known = command[2].replace("'", "")
        return f"unknown command {command[1]}; the known ones are {known}"
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
    from noisin_pyro.training.config import HINTS
    from noisin_pyro.training.option_types import describe_type

    if key in HINTS:
        return f"{key} must be {describe_type(HINTS[key])}, got {value[1]}"
    subtypes = re.search(r"Subtypes: \[(.*)\]\s+Errors", text)
    subtypes = subtypes or re.search(r"Expected an? (.*?)\.", text)
    names = re.sub(r"<class '(\w+)'>", r"\1", subtypes[1]) if subtypes else "?"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kinds = " or ".join(words.get(name, name) for name in sorted(names.split(", ")))
    return f"{key} must be {kinds}, got {value[1]}"
