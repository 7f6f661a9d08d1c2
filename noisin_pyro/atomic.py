"""Files that are either complete or absent, also after a loss of power."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PARTIAL", "describe_failure", "replacing"]

PARTIAL = ".partial"  # the suffix of a file that is being written


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` at the end of the block.

    A reader of `path` sees the old file or the whole new one. If the block raises, the temporary
    file is removed and `path` stays as it was. At the end of the block the data is on the disk.

    Args:
        path: The file to write.
        keep: What the old file, if there is one, is renamed to instead of being replaced.

    Raises:
        OSError: If the disk is full, say. Its `filename` is `path`, also where a write failed, of
            which Python does not name the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "words.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("a b", encoding="utf-8")
        >>> path.read_text(encoding="utf-8")
        'a b'
    """
    temporary = path.with_name(f"{path.name}{PARTIAL}")
    try:
        yield temporary
        _flush(temporary)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.filename in (None, temporary, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def describe_failure(error: OSError) -> str:
    """What is told of a file that could not be used, and what to do.

    Example:
        >>> describe_failure(PermissionError(13, "Permission denied", "runs/a"))
        'runs/a cannot be used (Permission denied); give another path'
    """
    name = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{name} cannot be written, the disk is full; what was there stays, make room and go on"
        )
    return f"{name} cannot be used ({error.strerror or error}); give another path"


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():  # only POSIX opens folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
