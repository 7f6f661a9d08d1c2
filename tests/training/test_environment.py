"""Which commit a record names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from noisin_pyro.training import environment


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a project in whose folder an environment with this code lies."""

    def git(*words: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *author, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    place = tmp_path / "venv" / "environment.py"
    place.parent.mkdir()
    place.write_text("")
    monkeypatch.setattr(environment, "__file__", str(place))
    git("init")
    git("commit", "--allow-empty", "-m", "of another project")
    assert environment.environment()["versions"]["commit"] is None
    git("add", ".")
    git("commit", "-m", "of this code")
    assert environment.environment()["versions"]["commit"] == git("rev-parse", "HEAD")
