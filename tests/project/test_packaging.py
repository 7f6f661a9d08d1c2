"""What surrounds the package agrees with it: version, citation, workflows and nox sessions."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import noisin_pyro

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))


def constant(name: str) -> Any:
    """A constant of the noxfile, read without importing nox."""
    for node in NOXFILE.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def workflow(name: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_the_citation_and_the_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == noisin_pyro.__version__
    assert citation["preferred-citation"]["year"] == 2018
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = f"## [{noisin_pyro.__version__}] - {citation['date-released']}"
    assert dated in changelog.splitlines()


def test_workflows_run_sessions_that_exist() -> None:
    functions = [node for node in NOXFILE.body if isinstance(node, ast.FunctionDef)]
    sessions = {node.name for node in functions if node.decorator_list}
    tests, weekly = workflow("tests"), workflow("weekly")
    matrix = tests["jobs"]["session"]["strategy"]["matrix"]["session"]
    text = str([tests, weekly])
    named = {*matrix, *re.findall(r"nox -s ([a-z]+)", text), "tests"}
    assert named <= sessions
    assert named >= sessions  # and each runs somewhere


def test_the_matrix_is_that_of_nox() -> None:
    matrix = workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == constant("PYTHONS")
    assert matrix["torch"] == constant("TORCHES")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"torch=={matrix['torch'][-1]}" in pinned.splitlines()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={matrix["torch"][0].removesuffix(".0")}"' in project


def test_hooks_use_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    ruff = hooks["repos"][0]["rev"].removeprefix("v")
    assert f"ruff=={ruff}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
