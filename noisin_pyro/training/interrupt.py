"""Handles signals that end a run: Ctrl-C, and those of schedulers and closed terminals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SIGNALS", "Interrupted", "Interruptible", "interrupting"]

#: The handled signals, as far as this system has them.
SIGNALS = [
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if name in signal.Signals.__members__
]

Handler = Callable[[int, "FrameType | None"], None]


class Interrupted(KeyboardInterrupt):
    """A signal has come. A training raises it after saving a checkpoint.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that shells and schedulers expect, 130 after Ctrl-C."""
        return 128 + self.number


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Within the block each signal calls ``handler``; outside the main thread nothing changes.

    A process started with ``nohup`` ignores SIGHUP, and goes on ignoring it. A handler that a
    program around this Python has set (R, for one) stays, because Python cannot set it again.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            before = signal.getsignal(number)
            ignored = before is signal.SIG_IGN and number != signal.SIGINT
            if before is not None and not ignored:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def interrupting() -> Iterator[None]:
    """Within this block a signal raises :class:`Interrupted`."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with handling(interrupt):
        yield


class Interruptible:
    """Within :meth:`deferring`, a signal sets ``requested``; a second Ctrl-C interrupts at once.

    Schedulers repeat other signals, so a second one of these is deferred too, as is a second
    Ctrl-C within :meth:`saving`.

    Args:
        tell: called with the number of each signal.

    Example:
        >>> stop = Interruptible()
        >>> with stop.deferring():
        ...     stop.requested
        0
    """

    def __init__(self, tell: Callable[[int], None] = lambda number: None) -> None:
        self.requested = 0
        self._tell = tell
        self._saving = False

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """The block in which signals are deferred."""
        with handling(self._handle):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The block in which a second Ctrl-C is deferred too."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, self.requested or number
        self._tell(number)
        if again and number == signal.SIGINT and not self._saving:
            raise Interrupted(number)
