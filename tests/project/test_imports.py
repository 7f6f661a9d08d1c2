"""What may import what, and what an import may do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import noisin_pyro

ROOT = Path(noisin_pyro.__file__).parent

#: A module imports only from modules to its left.
ORDER = [
    *("standardized", "noise", "spread", "products", "cells", "folding", "scan", "layers", "sites"),
    *("recurrence", "rnn", "linear_softmax", "emissions", "model", "guide", "objective"),
    *("smoothing", "annealing", "corpora", "batching", "evaluation", "generate", "training"),
    *("experiments", "cli"),
]
KNOW_NO_MODEL = {"corpora", "batching"}


def part(module: str) -> str:
    """``noisin_pyro.text.corpora.files`` -> ``corpora``; the package itself is ``""``."""
    return (module.split(".") + [""])[1]


def imported(file: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively; the package is read by name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {part(name) for name in names if name.split(".")[0] == "noisin_pyro"}
    return found - {"__version__"}


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in ORDER, f"give {own} its place in ORDER"
    for other in imported(file) - {own}:
        assert other in ORDER and ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"
        assert own not in KNOW_NO_MODEL or other in KNOW_NO_MODEL, f"{own} imports {other}"


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
    assert not {part(name) for name in report["own"]} & {"training", "cli"}


def test_public_names_are_what_they_are_called() -> None:
    """Whatever was imported before: ``evaluate`` is the function, not the file of that name."""
    script = """
import importlib, pkgutil, types
import noisin_pyro

for file in pkgutil.iter_modules(noisin_pyro.__path__):
    if file.name not in ("cli", "training"):
        importlib.import_module(f"noisin_pyro.{file.name}")
values = {name: getattr(noisin_pyro, name) for name in noisin_pyro.__all__}
print([name for name, value in values.items() if isinstance(value, types.ModuleType)])
"""
    assert fresh(script).strip() == "[]"
