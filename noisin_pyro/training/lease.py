"""A lock file with a heartbeat, which works on network file systems too.

``flock`` is local, or missing, on many of the file systems that clusters share. A lease is a file
that only one process can create. Its owner touches it every few seconds; if it has not been touched
for two minutes, its owner is taken for dead, and another process may take it. An owner that was
killed on this machine is detected at once, unless it was killed before it wrote its name into the
file. It imports no torch.
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
HEARTBEAT = 3.0  # seconds between two touches by the owner
#: Seconds without a touch after which a lease is taken over; NFS may show a touch a minute late.
STALE = 120.0
POLL = 0.1  # seconds between two attempts


class Held(Exception):
    """Another process has the lease, and is alive."""


class Lease:
    """A lease on a folder: the right to work in it.

    Try again with the same object, which remembers since when another's lease is untouched.

    Args:
        path: the lease's file.

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
        # The inode and time of an empty lease file, and when this object first saw it.
        self._empty: tuple[tuple[int, int], float] | None = None

    def take(self) -> bool:
        """Takes the lease if it is free, or its owner is dead; returns whether it did.

        Raises:
            OSError: if its file cannot be written.
        """
        for _ in range(2):  # the first attempt may only detect that the owner is dead
            try:
                self._lease.acquire(blocking=False)
            except Timeout:
                continue
            return True
        self._end_empty()
        return False

    def _end_empty(self) -> None:
        """Writes into a lease file that has been empty for ``STALE`` seconds.

        A kill or a loss of power just after its creation leaves it empty. filelock waits for the
        owner of an empty file for ever, but takes over a file whose contents name no owner.
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
                    # Other processes must not take this write for a touch by the owner.
                    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        except OSError:
            self._empty = None  # the file is gone, or may not be written

    def wait(self) -> None:
        """Waits for the lease, and takes it; for leases that are given back within moments."""
        while not self.take():
            time.sleep(POLL)

    def give_back(self) -> None:
        """Gives the lease back: removes its file."""
        self._lease.release()


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Takes a lease for a block.

    If another process has the lease, this waits until that process touches it, and then raises, or
    until it is taken for dead.

    Args:
        path: the lease's file.

    Raises:
        Held: if the other process is alive.
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
    """The inode and the time of the last touch of a file; None if there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _leave(lost: LeaseCompromise) -> None:
    """Ends this process, which has lost its lease, before it writes any more files."""
    path = Path(lost.lock_file)
    reason = {
        "owner-changed": f"another process took over {path.parent}, since this one stood still",
        "marker-missing": f"{path} was removed, by which others knew that {path.parent} is in use",
    }.get(lost.reason, f"{path} could no longer be kept ({lost.error})")
    print(f"noisin: {reason}; go on as after a kill", file=sys.stderr, flush=True)
    os._exit(BUSY)
