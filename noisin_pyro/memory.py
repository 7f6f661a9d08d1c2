"""The memory that this process can allocate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_memory"]


def available_memory() -> int:
    """The limit of this process's memory in bytes; ``sys.maxsize`` if Python cannot determine it.

    It is the least of the machine's physical memory, the container's limit (cgroup v2) and the
    process's address space limit. Memory in use is not subtracted.

    Example:
        >>> available_memory() > 0
        True
    """
    if not hasattr(os, "sysconf"):  # on Windows
        return sys.maxsize
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text(encoding="utf-8").strip()).isdigit():
        limits.append(int(text))
    import resource  # a module that Windows lacks

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, *([limit] if limit != resource.RLIM_INFINITY else [])])
