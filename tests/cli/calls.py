"""What the tests of commands share."""

import pytest

from noisin_pyro.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence on stderr of a command that exits with 2."""
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("noisin: ") and stderr.count("\n") == 1, stderr
    return stderr
