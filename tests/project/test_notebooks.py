"""The notebooks: run in CI, run before they were committed, and with public names only."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import noisin_pyro

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path
    for path in ROOT.rglob("*.ipynb")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    and not path.is_relative_to(ROOT / "docs")  # which has copies once the site is built
)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_ci_runs_every_notebook() -> None:
    assert len(NOTEBOOKS) == 9
    assert {path.parent for path in NOTEBOOKS} == {ROOT / "notebooks"}
    line = next(line for line in (ROOT / ".ci/run").read_text().splitlines() if "--nbmake " in line)
    assert line.startswith("pytest ") and line.endswith(" notebooks")  # the folder, so all of it


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    code = [cell for cell in cells(path, "code") if "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    kernel = json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"]
    assert kernel == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_figure_has_words_for_who_cannot_see_it(path: Path) -> None:
    for cell in cells(path, "code"):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) > 5, f"{cell['id']} has a figure and no alt text"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_the_public_interface_is_used(path: Path) -> None:
    for cell in cells(path, "code"):
        lines = [line for line in "".join(cell["source"]).splitlines() if line[:1] not in "%!"]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Attribute):
                private = node.attr.startswith("_") and not node.attr.endswith("__")
                assert not private, f"{path.name} reads {node.attr}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("noisin_pyro"):
                assert node.module == "noisin_pyro", f"{path.name} imports from {node.module}"
                assert {alias.name for alias in node.names} <= set(noisin_pyro.__all__)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_says_what_one_learns_and_what_to_change(path: Path) -> None:
    text = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    assert text[0].startswith("# ") and "learn" in text[0].lower()
    assert "change" in text[-1].lower() or "try" in text[-1].lower()
