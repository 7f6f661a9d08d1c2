"""Reading UTF-8 text files, with an error of one sentence for each way to fail."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["read_text"]


def read_text(path: Path, sha256: str | None = None) -> str:
    """Reads a UTF-8 text file.

    Args:
        path: the file.
        sha256: the expected SHA-256 of its bytes, in hexadecimal; unchecked by default.

    Raises:
        ValueError: if the file is missing, has another SHA-256, contains NUL bytes, is not UTF-8,
            or contains nothing but whitespace.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; check the path")
    data = path.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, actual):
        raise ValueError(
            f"{path} has SHA-256 {actual}, but the published file has {sha256}; "
            "fetch it again, or to use this text as it is, give its folder as the corpus"
        )
    if b"\0" in data:
        raise ValueError(f"{path} is binary (it holds NUL bytes); give UTF-8 text")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); "
            "convert it first, for example with iconv -t UTF-8"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty; give a text with at least one word")
    return text
