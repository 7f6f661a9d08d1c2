"""Files that are either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` at the end of the block.

    A reader of `path` sees the old file or the whole new one. If the block raises, the temporary
    file is removed and `path` stays as it was.

    Args:
        path: The file to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "words.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("a b", encoding="utf-8")
        >>> path.read_text(encoding="utf-8")
        'a b'
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
