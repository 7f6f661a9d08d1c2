"""The memory of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_memory"]


def available_memory() -> int:
    """Bytes of memory that this process may have, ``sys.maxsize`` where Python cannot tell.

    That is the least of the machine's memory, the limit of its container, and the process's own.

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
