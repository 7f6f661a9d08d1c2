"""The memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_memory"]


def available_memory() -> int:
    """Bytes of memory that this process may have."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text(encoding="utf-8").strip()).isdigit():
        limits.append(int(text))
    try:
        import resource
    except ImportError:  # there are no such limits on Windows
        return min(limits)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, *([limit] if limit != resource.RLIM_INFINITY else [])])
