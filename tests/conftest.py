"""What every test starts from, and what it must leave as it was."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from torch.distributions import Distribution

SEED = random.SystemRandom().randrange(2**31) if os.environ.get("UNLOCK_SEED") else 0
"""``UNLOCK_SEED=1 pytest`` hunts for tests that pass by luck; the header names the seed."""


def pytest_report_header() -> str:
    return f"seed: {SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
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
