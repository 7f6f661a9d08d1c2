"""A process that is killed, or whose disk is full, at one of its file operations.

A forked process does the work, so that no kill waits for an import; the file operations of what it
forks count too.
"""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from noisin_pyro.atomic import replacing


class Operation(NamedTuple):
    """A file operation below a folder.

    Args:
        number: counted from 1.
        kind: open (of a file that is made or changed), write, fsync, rename, remove, mkdir, rmdir.
        path: of what; of a file that is renamed, its old name; of fsync, empty.
    """

    number: int
    kind: str
    path: str


Disaster = Callable[[Operation, Callable[[], None]], None]
"""Called before each operation, also with a function that does the first half of it, if it can."""

AUDITED = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}


def nothing(operation: Operation, half: Callable[[], None]) -> None:
    """No disaster."""


def kill(at: int) -> Disaster:
    """SIGKILL at an operation: before it, which is after the one before, or in a write's midst."""

    def act(operation: Operation, half: Callable[[], None]) -> None:
        if operation.number == at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fill(at: int) -> Disaster:
    """A disk that is full from an operation on; half of what is written then arrives."""

    def act(operation: Operation, half: Callable[[], None]) -> None:
        if operation.number >= at and operation.kind not in ("remove", "rmdir"):
            is_full(operation, half)

    return act


def is_full(operation: Operation, half: Callable[[], None]) -> None:
    """Fails as an operating system does, which names no file where an open one is written to."""
    half()
    named = (operation.path,) if operation.kind not in ("write", "fsync") else ()
    raise OSError(errno.ENOSPC, "No space left on device", *named)


def half_written(path: Path) -> Path:
    """What a process that is killed while it writes a file leaves; ``path`` is as it was."""
    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        raise KeyboardInterrupt
    temporary.write_bytes(b"half")
    return temporary


def in_child(work: Callable[[], int], folder: Any, disaster: Disaster) -> tuple[int, int]:
    """Does some work in a forked process, with a disaster at its file operations below a folder.

    Returns:
        The process's exit code, or minus the signal that ended it, and how many operations it did.
    """
    with mmap.mmap(-1, 8) as counter:  # shared with what is forked
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)  # torch's other threads are not forked
                _watch(str(folder), counter, disaster)
                code = work()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), int.from_bytes(counter[:8], "little")


def _watch(root: str, counter: mmap.mmap, disaster: Disaster) -> None:
    def reach(kind: str, path: str, half: Callable[[], None] = lambda: None) -> None:
        number = int.from_bytes(counter[:8], "little") + 1
        counter[:8] = number.to_bytes(8, "little")
        disaster(Operation(number, kind, path), half)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        if event == "open":
            _, mode, flags = arguments
            changes = any(letter in str(mode) for letter in "wax") or flags & os.O_CREAT
            if changes and path.startswith(root):
                reach("open", path)
        elif event in AUDITED:
            # shutil.rmtree names what it removes relative to an open folder
            relative = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
            if relative or path.startswith(root):
                reach(AUDITED[event], path)

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            data = memoryview(data).cast("B")

            def half() -> None:
                super(File, self).write(data[: len(data) // 2])

            reach("write", str(self.name), half)
            return super().write(data)

    def watched_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        plain = set(mode) <= set("rbt") or "opener" in options  # tempfile opens its folder so
        if plain or not str(file).startswith(root):
            return plain_open(file, mode, *rest, **options)
        raw = File(os.fspath(file), mode.replace("b", "").replace("t", ""))
        buffered: Any = io.BufferedRandom(raw) if raw.readable() else io.BufferedWriter(raw)
        given = {**dict(zip(("buffering", "encoding", "errors", "newline"), rest)), **options}
        given.pop("buffering", None)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **given)

    def watched_fsync(descriptor: Any) -> None:
        reach("fsync", "")
        plain_fsync(descriptor)

    plain_open: Any = io.open
    plain_fsync: Any = os.fsync
    setattr(io, "open", watched_open)  # noqa: B010
    setattr(builtins, "open", watched_open)  # noqa: B010
    if accessor := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10 has its own io.open
        setattr(accessor, "open", staticmethod(watched_open))  # noqa: B010
    setattr(os, "fsync", watched_fsync)  # noqa: B010
    sys.addaudithook(hook)
