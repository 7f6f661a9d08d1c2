"""The entry point: runs a command, and turns what goes wrong into one sentence and a code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from noisin_pyro.atomic import describe_failure
from noisin_pyro.cli.commands import COMMANDS
from noisin_pyro.cli.config_files import read_config_files
from noisin_pyro.cli.output import open_closed_streams, silence, warn
from noisin_pyro.cli.parser import parser_of
from noisin_pyro.cli.sentences import sentence_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for bad input and 128 + n after signal n."""
    open_closed_streams()
    try:
        from noisin_pyro.training.interrupt import Interrupted, interrupting

        with interrupting():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:
        return error.exit_code if isinstance(error, Interrupted) else 130
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        warn(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        from noisin_pyro.training.memory import ran_out

        if not ran_out(error):
            raise
        warn("memory ran out, what is on the disk stays; lower hidden_size, layers or batch_size")
    except BrokenPipeError:  # nobody reads the progress any more
        silence(sys.stderr)
        return 128 + 13  # that of SIGPIPE, which Python ignores
    except OSError as error:
        warn(describe_failure(error))
    return 2


def _run(arguments: list[str]) -> int:
    try:
        from argparse import ArgumentError

        import jsonargparse  # noqa: F401
    except ImportError:
        raise ImportError(
            'the command line needs the extra lm; run pip install "noisin-pyro[lm]"'
        ) from None
    name = arguments[0] if arguments else "--help"
    if not arguments:
        parser_of(name, {}).print_help()
        return 2
    try:
        trains = name in ("train", "tune")
        given, arguments = read_config_files(name, arguments) if trains else ({}, arguments)
        # jsonargparse imports the class that a default names; that of a file is not trusted yet.
        named = {key: value for key, value in given.items() if isinstance(value, dict)}
        parser = parser_of(name, {key: given[key] for key in given.keys() - named.keys()})
        options = parser.parse_args(arguments)[name].as_dict()
    except ArgumentError as error:
        text = sentence_of(str(error.message))
        raise ValueError(
            text if name not in COMMANDS else f"{text}; see noisin {name} --help"
        ) from None
    if trains:
        from noisin_pyro.training.config import TrainConfig

        del options["config"]
        own = {key: options.pop(key) for key in ("trials", "storage") if key in options}
        typed = parser.parse_args(arguments, defaults=False)[name].as_dict()
        options.update({key: named[key] for key in named.keys() - typed.keys()})
        if name == "tune":
            own["fixed"] = given.keys() | typed.keys()
        options = {"config": TrainConfig(**options), **own}
    COMMANDS[name](**options)
    return 0
