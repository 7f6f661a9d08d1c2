"""Where a study is stored: the path of a journal file, or the URL of a database."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_place", "exists"]

_URL = "give the path of a journal file, or a URL such as sqlite:///study.db"
_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")


def check_place(place: str) -> None:
    """Refuses what is neither a path nor the URL of a database that lasts.

    Raises:
        ValueError: if it is empty, a URL with slashes missing, or a database in memory.

    Example:
        >>> check_place("sqlite:study.db")
        Traceback (most recent call last):
        ...
        ValueError: storage 'sqlite:study.db' is no URL; three slashes follow sqlite:, as in ...
    """
    if not place:
        raise ValueError(f"storage is empty; leave it out, or {_URL}")
    if place in _MEMORY:
        raise ValueError(f"storage {place!r} is in memory and ends with this process; {_URL}")
    if place.startswith("sqlite:") and not place.startswith("sqlite:///"):
        raise ValueError(
            f"storage {place!r} is no URL; three slashes follow sqlite:, as in sqlite:///study.db"
        )


def exists(place: str) -> bool:
    """Whether the file of a journal or of an SQLite database is there.

    Databases on a server are taken to exist.

    Example:
        >>> exists("sqlite:///no/such.db"), exists("mysql://host/studies")
        (False, True)
    """
    if place.startswith("sqlite:///"):
        place = place.removeprefix("sqlite:///").partition("?")[0]
    return "://" in place or Path(place).exists()
