"""The parser, which reads the options of a command from the signature of its function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from noisin_pyro.cli.commands import COMMANDS
from noisin_pyro.cli.output import show

__all__ = ["parser_of"]


def parser_of(name: str, given: dict[str, Any], *more: str) -> Any:
    """The parser of all commands, but with the options of few: adding all takes a second.

    Args:
        name: the command whose options it has.
        given: values that replace the defaults of these options.
        more: further commands whose options it has.
    """
    from jsonargparse import ArgumentParser, set_loader

    from noisin_pyro import __version__
    from noisin_pyro.training.safe_yaml import parse_yaml

    set_loader("safe_yaml", parse_yaml, exceptions=(ValueError,))

    class Parser(ArgumentParser):
        def _print_message(self, message: str, file: Any = None) -> None:
            show(message, file or sys.stderr)  # argparse would drop errors, as of a full disk

    parser = Parser(
        prog="noisin",
        description="Language models whose RNN has unbiased noise on its hidden state (NOISIN).",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    for known, command in COMMANDS.items():
        description = _description(command)
        sub = Parser(
            description=description, exit_on_error=False, default_env=False, parser_mode="safe_yaml"
        )
        if known == name or known in more:
            _add_options(sub, known)
            _allow_bare_flags(sub)
        if known == name:
            if name == "tune":
                sub.set_defaults({"out": "runs/tune"})
            sub.set_defaults(given)
        commands.add_subcommand(known, sub, help=description.splitlines()[0])
        sub.prog = f"noisin {known}"
    return parser


def _description(command: Callable[..., None]) -> str:
    """The docstring of a command's function above its arguments."""
    return (inspect.getdoc(command) or "").partition("\nArgs:")[0].strip()


def _allow_bare_flags(parser: Any) -> None:
    """Lets ``--resume`` mean ``--resume true``."""
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool and action.option_strings:
            action.nargs, action.const = "?", True


def _add_options(parser: Any, name: str) -> None:
    if name not in ("train", "tune"):
        parser.add_function_arguments(COMMANDS[name], as_positional=True, as_group=False)
        return
    from noisin_pyro.training.config import TrainConfig

    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    if name == "tune":
        parser.add_function_arguments(COMMANDS[name], skip={"config", "fixed"}, as_group=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
