"""The command line, ``noisin train | tune | evaluate | ...``, with a file for each command.

A command imports torch and the library in its function, so that ``--help`` answers at once.
"""

from noisin_pyro.cli.entry import main

__all__ = ["main"]
