"""Who made the processor. MKL, by which torch computes products and tanh, is slow on others'."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["INTEL", "by_intel"]


def by_intel() -> bool:
    """Whether Intel made the processor."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "Intel" in platform.processor()


INTEL = by_intel()
