"""Parses typed arguments into the keyword arguments of a command's function."""

from __future__ import annotations

import json
import re
from typing import Any

from noisin_pyro.cli.commands import COMMANDS
from noisin_pyro.cli.config_files import read_config_files
from noisin_pyro.cli.parser import parser_of
from noisin_pyro.cli.sentences import sentence_of

__all__ = ["parse"]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parses the command's name and its options, where ``--hidden-size`` is ``--hidden_size``.

    Returns:
        The keyword arguments of the function in :data:`COMMANDS`.

    Raises:
        ValueError: if there is no such command, or an option does not fit.
        SystemExit: after ``--help``, ``--version`` or ``--print_config``.
    """
    from argparse import ArgumentError

    name = arguments[0]
    arguments = [
        re.sub("^--[^=]+", lambda m: "--" + m[0][2:].replace("-", "_"), one) for one in arguments
    ]
    try:
        if name in ("train", "tune"):
            return _training(name, arguments)
        return _options(parser_of(name, {}), arguments)
    except ArgumentError as error:
        text = sentence_of(name, str(error))
        if name in COMMANDS:
            text += f"; see noisin {name} --help"
        raise ValueError(text) from None


def _options(parser: Any, arguments: list[str], defaults: bool = True) -> dict[str, Any]:
    options: dict[str, Any] = parser.parse_args(arguments, defaults=defaults)[
        arguments[0]
    ].as_dict()
    return options


def _training(name: str, arguments: list[str]) -> dict[str, Any]:
    """The arguments of ``train`` or ``tune``: typed options override files, and files defaults."""
    from noisin_pyro.training.config import HINTS, TrainConfig

    in_files, arguments = read_config_files(name, arguments)
    # As a parser's default, a mapping with a class_path would make jsonargparse import the class
    # before TrainConfig has checked that it may be imported.
    mappings = {key: value for key, value in in_files.items() if isinstance(value, dict)}
    scalars = {key: value for key, value in in_files.items() if key not in mappings}
    if any(one.startswith("--print_config") and "skip_default" in one for one in arguments):
        # It skips what is the parser's default, so the files' values must be typed.
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in scalars.items()}
        arguments = [name, *(f"--{key}={text}" for key, text in texts.items()), *arguments[1:]]
        scalars = {}
    parser = parser_of(name, scalars)
    options = _options(parser, arguments)
    typed = _options(parser, arguments, defaults=False)
    options.update({key: mappings[key] for key in mappings.keys() - typed.keys()})
    del options["config"]
    of_tune: dict[str, Any] = {key: options.pop(key) for key in options.keys() - HINTS.keys()}
    if name == "tune":
        of_tune["fixed"] = in_files.keys() | typed.keys()
    return {"config": TrainConfig(**options), **of_tune}
