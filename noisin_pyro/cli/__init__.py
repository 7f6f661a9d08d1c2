"""The command line, a file for each command: ``noisin train | tune | evaluate | ...``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from noisin_pyro.cli.entry import main

__all__ = ["main"]
