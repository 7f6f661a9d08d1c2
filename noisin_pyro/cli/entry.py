"""The entry point: runs a command, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from noisin_pyro.atomic import describe_failure
from noisin_pyro.cli.arguments import parse
from noisin_pyro.cli.commands import COMMANDS
from noisin_pyro.cli.output import allow_any_text, open_closed_streams, show, silence, warn
from noisin_pyro.cli.parser import parser_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command and its options; those of the process by default.

    Returns:
        The exit code: 0, 2 for bad input, or 128 + n after signal n. A process whose folder another
        one has taken over ends with 75.

    Raises:
        SystemExit: with 0 after ``--help``, and with 1 if a training of ``reproduce`` failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_closed_streams()
    if not any(one.startswith("--print_config") for one in given):  # it prints names of files
        allow_any_text()
    _wait_shortly()
    try:
        from noisin_pyro.training.interrupt import Interrupted, interrupting

        with interrupting():
            return _run(given)
    except KeyboardInterrupt as error:
        return error.exit_code if isinstance(error, Interrupted) else 130
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        warn(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        from noisin_pyro.training.memory import ran_out

        if not ran_out(error):
            raise
        warn("memory ran out, what is on the disk stays; lower hidden_size, layers or batch_size")
    except BrokenPipeError:  # the reader of stderr has closed the pipe
        silence(sys.stderr)
        return 128 + 13  # as a process that SIGPIPE kills; Python ignores the signal
    except OSError as error:
        warn(describe_failure(error))
    return 2


def _wait_shortly() -> None:
    """Lets torch's threads sleep where they wait for one another, before torch is imported.

    Otherwise each turns in a loop, and a training beside other programs takes many times as long
    (``benchmarks/busy.py``). It concerns the OpenMP of GNU, which torch has on Linux.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _run(arguments: list[str]) -> int:
    try:
        import jsonargparse  # noqa: F401
    except ImportError:
        raise ImportError(
            'the command line needs the extra lm; run pip install "noisin-pyro[lm]"'
        ) from None
    if not arguments:
        parser_of("--help", {}).print_help()
        return 2
    try:
        options = parse(arguments)
    except SystemExit:
        show("", sys.stdout)  # writes what jsonargparse has printed
        raise
    COMMANDS[arguments[0]](**options)
    return 0
