"""``python -m noisin_pyro`` is ``noisin``."""

import os
import subprocess
import sys

import pytest

import noisin_pyro


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "noisin_pyro", "--version"]
    assert subprocess.check_output(command, text=True).strip() == noisin_pyro.__version__


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_wait_shortly_unless_told_otherwise(given: dict[str, str]) -> None:
    """OpenMP reads the variable when torch is loaded, so it must be set before."""
    program = (
        "import os, sys, noisin_pyro.cli as cli\n"
        "loaded = 'torch' in sys.modules\n"
        "cli.main([])\n"
        "print(loaded, os.environ.get('GOMP_SPINCOUNT'))"
    )
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {name: value for name, value in os.environ.items() if name not in ours} | given
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    expected = given.get("GOMP_SPINCOUNT") if given else "1000"
    assert done.stdout.split()[-2:] == ["False", str(expected)]
