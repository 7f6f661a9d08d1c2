"""What the command line prints, safe for any terminal."""

from __future__ import annotations

import sys

__all__ = ["say", "warn"]


def say(text: str) -> None:
    """Prints to standard output, without control sequences and in its encoding."""
    from noisin_pyro.training.printable import printable

    encoding = sys.stdout.encoding or "utf-8"  # one that has no γ shows a question mark
    print(printable(text).encode(encoding, "replace").decode(encoding), flush=True)


def warn(text: str) -> None:
    """Prints one sentence to standard error."""
    from noisin_pyro.training.printable import printable

    print(f"noisin: {printable(text)}", file=sys.stderr)
