"""``noisin completion``."""

from __future__ import annotations

from typing import Literal

from noisin_pyro.cli.output import say

__all__ = ["completion"]


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script with which a shell completes commands and options.

    Args:
        shell: the shell. For bash, put eval "$(noisin completion bash)" into .bashrc.
    """
    from noisin_pyro.cli.commands import COMMANDS
    from noisin_pyro.cli.parser import parser_of

    try:
        import shtab  # noqa: F401  # jsonargparse makes the script with it
    except ImportError:
        raise ImportError(
            'completion needs shtab; run pip install "noisin-pyro[completion]"'
        ) from None
    say(parser_of("", {}, *COMMANDS).get_completion_script(f"shtab-{shell}"))
