"""Who may write to a folder: a lock file with a heartbeat, also on network file systems.

`flock` is local, or missing, on many of the file systems that clusters share. A lease is a file
that only one process can create. Its owner touches it every few seconds; if nobody has touched it
for two minutes, its owner's machine is gone, and another process may take it. An owner that was
killed on this machine is known to be gone at once, but not one that was killed before it wrote its
name into the file. It imports no torch.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

__all__ = ["BUSY", "Held", "Lease", "holding"]

BUSY = 75  # exit code if another process has the folder; EX_TEMPFAIL of sysexits.h
HEARTBEAT = 3.0  # seconds between two touches
#: Seconds without one after which a lease is taken over; a client of NFS may see it a minute late.
STALE = 120.0
POLL = 0.1  # seconds between two attempts


class Held(Exception):
    """Another process has the lease, and is alive or may be."""


class Lease:
    """The right to work in a folder.

    Keep the object to try again: it remembers since when another's lease has not been touched.

    Args:
        path: its file.

    Example:
        >>> import tempfile
        >>> first, second = (Lease(path) for path in [Path(tempfile.mkdtemp()) / "lock"] * 2)
        >>> first.take(), second.take()
        (True, False)
        >>> first.give_back()
        >>> second.take()
        True
        >>> second.give_back()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lease = SoftFileLease(
            path,
            lease_duration=STALE,
            heartbeat_interval=HEARTBEAT,
            on_compromise=_leave,
            thread_local=False,
        )
        self._empty: tuple[tuple[int, int], float] | None = None  # an empty file, and since when

    def take(self) -> bool:
        """Takes it if it is free, or its owner is gone.

        Raises:
            OSError: if its file cannot be written.
        """
        for _ in range(2):  # the first one may find that its owner is gone
            try:
                self._lease.acquire(blocking=False)
            except Timeout:
                continue
            return True
        self._end_empty()
        return False

    def _end_empty(self) -> None:
        """Writes into a file that has been empty for so long that nobody is about to.

        A kill or a loss of power just after its creation leaves it so. filelock waits for the owner
        of an empty file for ever, and takes over one that holds no owner's name.
        """
        try:
            with self.path.open("rb+", buffering=0) as file:
                status = os.fstat(file.fileno())
                seen, now = (status.st_ino, status.st_mtime_ns), time.monotonic()
                if status.st_size:
                    self._empty = None
                elif self._empty is None or self._empty[0] != seen:
                    self._empty = seen, now
                elif now - self._empty[1] >= STALE:
                    file.write(b"nobody\n")
                    # To those who watch it is the same file, and nobody's touch.
                    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        except OSError:
            self._empty = None  # gone, or not ours to write

    def wait(self) -> None:
        """Takes it when it is free, for what another has only for a moment."""
        while not self.take():
            time.sleep(POLL)

    def give_back(self) -> None:
        """Removes its file."""
        self._lease.release()


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Takes a lease for a block.

    If another process has it, this waits until that is seen to be alive, or has been silent for so
    long that its machine must be gone.

    Args:
        path: the lease's file.

    Raises:
        Held: if the other one is alive.
        OSError: if the file cannot be written.
    """
    lease, first = Lease(path), _touched(path)
    tell = time.monotonic() + 2 * HEARTBEAT
    while not lease.take():
        touched = _touched(path)
        if first is not None and touched not in (None, first):
            raise Held(f"{path} is another process's")
        first = touched
        if time.monotonic() > tell:
            tell = math.inf
            text = f"waiting to see whether the process that has {path.parent} is still alive"
            print(f"noisin: {text}", file=sys.stderr, flush=True)
        time.sleep(POLL)
    try:
        yield
    finally:
        lease.give_back()


def _touched(path: Path) -> tuple[int, int] | None:
    """Which file is there and when it was last touched; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _leave(lost: LeaseCompromise) -> None:
    """Ends this process, which another took for dead and whose files it must not write any more."""
    folder = Path(lost.lock_file).parent
    print(
        f"noisin: another process has taken over {folder}, since this one stood still",
        file=sys.stderr,
        flush=True,
    )
    os._exit(BUSY)
