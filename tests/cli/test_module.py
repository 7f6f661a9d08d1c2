"""``python -m noisin_pyro`` is ``noisin``."""

import subprocess
import sys

import noisin_pyro


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "noisin_pyro", "--version"]
    assert subprocess.check_output(command, text=True).strip() == noisin_pyro.__version__
