"""Ctrl-C that waits for the step to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interruptible", "Interrupted"]


class Interrupted(Exception):
    """Ctrl-C was pressed, and a checkpoint has been saved."""


class Interruptible:
    """While entered, the first SIGINT only sets `requested`; a second one interrupts at once.

    Example:
        >>> with Interruptible() as stop:
        ...     stop.requested
        False
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
