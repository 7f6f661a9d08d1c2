"""What every test starts from, and what it must leave as it was."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.distributions import Distribution

ROOT = Path(__file__).resolve().parents[1]

CORE = {
    "noise",
    "spread",
    "kernels",
    "cells",
    "layers",
    "sites",
    "nn",
    "models",
    "infer",
    "proofs",
} | {
    *("atomic", "lengths", "memory", "modes", "naming", "parameters", "plain_text", "tokens"),
    "vocabulary",
}
"""The rooms that need no extra; every other room is of the tier ``lm``."""

NEEDED = ("lightning_fabric", "jsonargparse", "pooch", "tqdm", "safetensors", "matplotlib", "yaml")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
"""What the tier ``lm`` needs and this environment lacks. If there is any, the tier is left out."""

if os.environ.get("UNLOCK_SEED"):
    os.environ.setdefault("SEED_OF_THIS_RUN", str(random.SystemRandom().randrange(2**31)))
SEED = int(os.environ.get("SEED_OF_THIS_RUN", "0"))
"""``UNLOCK_SEED=1 pytest`` hunts for tests that pass by luck; the header names the seed.

The environment hands the seed to xdist's workers. ``SEED_OF_THIS_RUN=123 pytest`` repeats a run.
"""

pytest.register_assert_rewrite(
    *("tests.helpers", "tests.cli.calls", "tests.models.saved_models", "tests.nn.twins"),
    "tests.training.runs",
)


OPTIONAL = {ROOT / "noisin_pyro" / "hub.py": "huggingface_hub"}
"""Files that cannot be imported without an extra that is neither core nor ``lm``."""


def pytest_configure(config: pytest.Config) -> None:
    """Under ``pytest -n``: one thread for each worker, and for the processes its tests start."""
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    config.pluginmanager.register(WithoutExtras())


def pytest_report_header() -> list[str]:
    lines = [f"seed: {SEED}"]
    if MISSING:
        lines.append(f"left out: the tests of the tier lm, which need {', '.join(MISSING)}")
    return lines


def tier(path: Path) -> str | None:
    """``core`` or ``lm`` for a file of a room, by the folder it lies in."""
    for place in (ROOT / "tests", ROOT / "noisin_pyro"):
        if path.is_relative_to(place) and path != place:
            room = path.relative_to(place).parts[0].removesuffix(".py")
            if room not in ("__init__", "conftest", "helpers", "__pycache__"):
                return "core" if room in CORE else "lm"
    return None


class WithoutExtras:
    """Leaves out the files that cannot be imported.

    This is a plugin because the hook of a conftest sees its own folder alone, and the doctests of
    the package lie elsewhere.
    """

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        needed = OPTIONAL.get(collection_path)
        if needed is not None and importlib.util.find_spec(needed) is None:
            return True
        return True if MISSING and tier(collection_path) == "lm" else None


@pytest.hookimpl(tryfirst=True)  # before ``-m`` selects by these markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("lm") is None:  # a module of a core room may say otherwise
            item.add_marker(tier(item.path) or "core")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can see"))


def global_state() -> dict[str, Any]:
    """The switches of torch and Pyro that no test and no code under test may leave turned."""
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the validation of distributions": Distribution._validate_args,
        **{f"Pyro's setting {name}": value for name, value in pyro.settings.get().items()},
    }


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch, numpy and random; a test that draws in several places may seed again."""
    pyro.set_rng_seed(SEED)
    return SEED


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """An empty param store before and after, Pyro's validation on, no switch left turned."""
    with pyro.validation_enabled(True):
        pyro.clear_param_store()
        before = global_state()
        yield
        after = global_state()
        pyro.clear_param_store()
    changed = [name for name, value in before.items() if after[name] != value]
    assert not changed, f"the test left changed: {', '.join(changed)}"
