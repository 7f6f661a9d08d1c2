"""What may import what, and what an import may do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import noisin_pyro

ROOT = Path(noisin_pyro.__file__).parent


def test_rooms_import_one_way() -> None:
    """The contracts of import-linter in ``pyproject.toml``."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as main; main()",
    ]
    done = subprocess.run(
        [*command, "--no-cache"], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_imports_are_absolute() -> None:
    """A reader sees in every import which room it comes from."""
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), file


def test_a_module_names_in_all_what_others_import_from_it() -> None:
    trees = {
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts): ast.parse(file.read_text())
        for file in sorted(ROOT.rglob("*.py"))
    }
    named = {
        module: ast.literal_eval(node.value)
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if isinstance(node.value, ast.List)
    }
    imports = [
        (node.module, alias.name)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in trees
        for alias in node.names
    ]
    assert len(imports) > 500
    assert [one for one in imports if one[1] not in named[one[0]]] == []


def fresh(script: str) -> str:
    """What a script prints in an interpreter of its own."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_import_changes_nothing() -> None:
    report = json.loads(
        fresh("""
import json, logging, sys, warnings
import pyro, torch

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "random state": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "warnings": [str(entry) for entry in warnings.filters],
        "Pyro": {name: str(value) for name, value in pyro.settings.get().items()},
        "parameters": list(pyro.get_param_store()),
        "handlers": [str(handler) for handler in logging.getLogger().handlers],
        "level": logging.getLogger().level,
    }

before = state()
import noisin_pyro
for name in noisin_pyro.__all__:
    getattr(noisin_pyro, name)
after = state()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "own": [name for name in sys.modules if name.startswith("noisin_pyro.")],
}))
""")
    )
    assert report["changed"] == []
    extras = {"matplotlib", "lightning_fabric", "jsonargparse", "pooch", "tensorboard"}
    assert not extras & set(report["loaded"])
    rooms = {name.split(".")[1] for name in report["own"]}
    assert "nn" in rooms and not rooms & {"training", "experiments", "cli"}


def test_public_names_are_what_they_are_called() -> None:
    """Whatever was imported before: ``evaluate`` is the function, not the file of that name."""
    script = """
import importlib, pkgutil, types
import noisin_pyro

for module in pkgutil.walk_packages(noisin_pyro.__path__, "noisin_pyro."):
    if module.name.split(".")[1] not in ("cli", "hub", "training", "experiments"):
        importlib.import_module(module.name)
values = {name: getattr(noisin_pyro, name) for name in noisin_pyro.__all__}
print([name for name, value in values.items() if isinstance(value, types.ModuleType)])
"""
    assert fresh(script).strip() == "[]"
