"""Writing files atomically: old or new content, never a part, also after a loss of power."""

from __future__ import annotations

import errno
import glob
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["describe_failure", "remove_partials", "replacing"]

#: Temporary files are called `<name>.<32 random hexadecimal digits>.partial`. Of a name at most 50
#: characters are taken, since file systems limit a name to 255 bytes, and UTF-8 has up to 4 each.
_SUFFIX, _DIGITS, _LONGEST = ".partial", 32, 50
_ABANDONED = 86400.0  # seconds after which no one is still writing a temporary file


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, and then renames it to ``path``.

    A reader of ``path`` sees the old file or a complete new one, also if several processes write it
    at a time; the last one to finish wins. If the block raises, the temporary file is removed and
    ``path`` is unchanged. When the context exits, the data is on the disk. A temporary file that a
    killed process left is removed by the first write of ``path`` after a day.

    Args:
        path: the file to write.
        keep: a path to which an old file is renamed; by default it is replaced. Between the two
            renames there is no ``path``, so that a reader should then read ``keep``, and only one
            process may write.

    Raises:
        OSError: if the file cannot be written, as on a full disk. Its ``filename`` is ``path``,
            also after a failed write, for which Python gives none.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "words.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("a b", encoding="utf-8")
        >>> path.read_text(encoding="utf-8")
        'a b'
    """
    remove_partials(path, _ABANDONED)
    temporary = path.with_name(f"{path.name[:_LONGEST]}.{uuid.uuid4().hex}{_SUFFIX}")
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


def remove_partials(path: Path, age: float = -math.inf) -> None:
    """Removes temporary files of :func:`replacing` that a killed process left.

    Args:
        path: the file that was to be written.
        age: remove only those whose last write is at least so many seconds ago. By default all are
            removed, so no other process may be writing ``path``.
    """
    pattern = f"{glob.escape(path.name[:_LONGEST])}.{'[0-9a-f]' * _DIGITS}{_SUFFIX}"
    for temporary in path.parent.glob(pattern):
        with suppress(OSError):  # another process has removed it, or it may not be removed
            if time.time() - temporary.stat().st_mtime >= age:
                temporary.unlink()


def describe_failure(error: OSError) -> str:
    """One sentence about a file that could not be read or written, with a remedy.

    Args:
        error: the error; its ``filename`` is the file.

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
