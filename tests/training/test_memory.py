"""The memory that a process may have."""

from __future__ import annotations

import os
import sys

import pytest

from noisin_pyro.memory import available_memory


def test_a_system_that_does_not_tell_its_memory_limits_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Windows, which has neither ``os.sysconf`` nor the module resource."""
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert available_memory() == sys.maxsize
