"""Printing to standard output and error: safe for any terminal, and for closed streams."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

__all__ = ["allow_any_text", "open_closed_streams", "say", "show", "silence", "warn"]


def open_closed_streams() -> None:
    """Opens closed standard streams, as a daemon may have them, on the null device.

    Otherwise the next file to be opened would get the descriptor of a closed stream, and what a
    library prints to that stream would be written into the file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # as Python leaves it if the stream is closed
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def allow_any_text() -> None:
    """Makes standard output print a question mark for what its encoding lacks, as γ in ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(text: str) -> None:
    """Prints to standard output, without control characters."""
    from noisin_pyro.training.printable import printable

    encoding = sys.stdout.encoding or "utf-8"
    show(printable(text).encode(encoding, "replace").decode(encoding) + "\n", sys.stdout)


def warn(text: str) -> None:
    """Prints one sentence to standard error."""
    from noisin_pyro.training.printable import printable

    show(f"noisin: {printable(text)}\n", sys.stderr)


def show(text: str, stream: TextIO) -> None:
    """Prints; if the reader of a pipe has closed it, as head does, further output is dropped.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    try:
        print(text, file=stream, end="", flush=True)
    except BrokenPipeError:
        silence(stream)
    except OSError:
        silence(stream)  # Python would try to write it again when it exits
        raise


def silence(stream: TextIO) -> None:
    """Redirects a stream to the null device, with what is left in its buffer."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
