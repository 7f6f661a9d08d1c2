"""What the command line prints, safe for any terminal, and for none."""

from __future__ import annotations

import os
import sys
from typing import TextIO

__all__ = ["open_closed_streams", "say", "silence", "warn"]


def open_closed_streams() -> None:
    """Opens the standard streams that a daemon is started without, on the null device.

    Python has None for them, and the next file that is opened would get their number, so that what
    a library prints would go into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def say(text: str) -> None:
    """Prints to standard output, without control sequences and in its encoding."""
    from noisin_pyro.training.printable import printable

    encoding = sys.stdout.encoding or "utf-8"  # one that has no γ shows a question mark
    _print(printable(text).encode(encoding, "replace").decode(encoding), sys.stdout)


def warn(text: str) -> None:
    """Prints one sentence to standard error."""
    from noisin_pyro.training.printable import printable

    _print(f"noisin: {printable(text)}", sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Prints; if the reader of a pipe, such as head, has enough, what follows is not needed."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Sends what is left in a stream's buffer, and all that follows, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
