"""A journal file of Optuna, which stays readable when the processes that write to it are killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from noisin_pyro.training.lease import Lease

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["open_journal"]

BEGINS = b'{"op_code":'  # the first bytes of each entry


def open_journal(path: str) -> BaseStorage:
    """A journal file that survives a kill of the processes that write to it.

    If the owner of its lock was killed on this machine, the lock is free at once. An entry that a
    kill or a full disk cut off is removed before the next one is appended.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Lock(JournalFileOpenLock):
        _lease = Lease(Path(f"{path}.lock"))

        def acquire(self) -> bool:
            self._lease.wait()
            _cut_back(Path(path))
            return True

        def release(self) -> None:
            self._lease.give_back()

    _check_journal(Path(path))
    return JournalStorage(JournalFileBackend(path, Lock(path)))


def _check_journal(path: Path) -> None:
    """Raises ValueError if a file is no journal, before anything is written into it."""
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            known = "op_code" in json.loads(line)
        except (ValueError, TypeError):
            known = False
        if not known:
            raise ValueError(f"its line {number} is no entry of a journal")
    if not last.startswith(BEGINS[: len(last)]):
        raise ValueError("its last line is no entry of a journal")


def _cut_back(path: Path) -> None:
    """Removes an incomplete last entry from a journal; the caller has its lock."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
