"""Writing files atomically: old or new content, never a part, also after a loss of power."""

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
    """Yields a temporary path in the folder of `path`, and renames it to `path` after the block.

    A reader of `path` sees the old file or the complete new one. If the block raises, the temporary
    file is removed and `path` is unchanged. When the context exits, the data is on the disk.

    Args:
        path: The file to write.
        keep: A path to which an old file is renamed; by default it is replaced.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full. Its `filename`
            is `path`, also after a failed write, for which Python gives none.

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
    """One sentence about a file that could not be read or written, with a remedy.

    Args:
        error: The error; its `filename` is the file.

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
    """Waits until a file's data, or a folder's entries, are on the disk."""
    if os.name != "posix" and path.is_dir():  # only POSIX opens folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
