"""Signals that end a run: Ctrl-C, and those that schedulers and closed terminals send."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SIGNALS", "Interrupted", "Interruptible", "interrupting"]

#: Those of the signals that this system has.
SIGNALS = [
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if name in signal.Signals.__members__
]

Handler = Callable[[int, "FrameType | None"], None]


class Interrupted(KeyboardInterrupt):
    """A signal has come, and what was done until then is saved.

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
    """Calls ``handler`` on each of the signals within a block; only the main thread can.

    A process started with ``nohup`` ignores SIGHUP, and goes on ignoring it.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number == SIGNALS[0] or signal.getsignal(number) is not signal.SIG_IGN:
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
    """Within :meth:`deferring`, a signal sets `requested`; a second Ctrl-C interrupts at once.

    Other signals are repeated by those who send them, and always wait. So does a Ctrl-C within
    :meth:`saving`.

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
        """The block whose signals wait."""
        with handling(self._handle):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The block that a second Ctrl-C does not interrupt either."""
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
