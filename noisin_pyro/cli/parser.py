"""The parser, which reads the options of a command from the signature of its function."""

from __future__ import annotations

from typing import Any

from noisin_pyro.cli.commands import COMMANDS

__all__ = ["parser_of"]


def parser_of(name: str, given: dict[str, Any], *more: str) -> Any:
    """The parser of all commands, with the options of one: reading those of all takes a second.

    Args:
        name: the command whose options it has.
        given: values that stand for the defaults of these options.
        more: further commands whose options it has.
    """
    from jsonargparse import ArgumentParser, set_loader

    from noisin_pyro import __version__
    from noisin_pyro.training.safe_yaml import parse_yaml

    set_loader("safe_yaml", parse_yaml, exceptions=(ValueError,))

    parser = ArgumentParser(
        prog="noisin",
        description="Noise-based regularisation of RNNs.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    for known, command in COMMANDS.items():
        summary = (command.__doc__ or "").strip().splitlines()[0]
        sub = ArgumentParser(
            description=summary, exit_on_error=False, default_env=False, parser_mode="safe_yaml"
        )
        if known == name or known in more:
            _add_options(sub, known)
        if known == name:
            if name == "tune":
                sub.set_defaults({"out": "runs/tune"})
            sub.set_defaults(given)
        commands.add_subcommand(known, sub, help=summary)
        sub.prog = f"noisin {known}"
    return parser


def _add_options(parser: Any, name: str) -> None:
    if name in ("train", "tune"):
        from noisin_pyro.training.config import TrainConfig

        parser.add_argument("--config", action="config", help="a YAML file with any of the options")
        if name == "tune":
            parser.add_argument("--trials", type=int, default=20, help="trials in all")
            where = "a journal file or a database's URL that several machines share"
            parser.add_argument("--storage", type=str | None, default=None, help=where)
        parser.add_class_arguments(TrainConfig)
        return
    parser.add_function_arguments(COMMANDS[name], as_positional=True)
