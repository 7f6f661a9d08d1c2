"""Who made the processor, read from what the system says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.kernels.processor import by_intel


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "intel"),
    [
        ("vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)", "", True),
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC", "", False),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", True),
        (None, "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", False),
        (None, "arm", False),
    ],
)
def test_who_made_the_processor(
    cpuinfo: str | None, processor: str, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Path, **_: Any) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(self)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.processor", lambda: processor)
    assert by_intel() == intel
