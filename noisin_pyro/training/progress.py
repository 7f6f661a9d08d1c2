"""The progress of a training: the counters of a checkpoint, and their display."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from noisin_pyro.text.perplexity import perplexity

__all__ = ["OnSteps", "PlainLines", "Progress", "ProgressBar", "Status", "is_terminal"]

PLAIN_EVERY = 60.0  # seconds between two lines in a log file


@dataclass
class Progress:
    """Counters of a training, which a checkpoint holds beside tensors.

    Args:
        epoch: the current epoch, counted from 1.
        step: the number of steps done in the current epoch.
        nats: the sum of the losses of these steps, in nats.
        tokens: the number of targets of these steps.
        best: the lowest validation loss so far, in nats per token.
        since_best: the number of epochs since the one with that loss.
        seconds: seconds spent on the current epoch.
        finished: whether the training is over.
        history: a row for each finished epoch; losses are in nats per token.
        changes: a row for each resumption that changed options: epoch, step, and the options.
    """

    epoch: int = 1
    step: int = 0
    nats: float = 0.0
    tokens: int = 0
    best: float = math.inf
    since_best: int = 0
    seconds: float = 0.0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """The progress that a training reports every few steps.

    Args:
        label: the name of the model.
        epoch, epochs: the current epoch, counted from 1, and the maximum number of epochs.
        step, steps: the number of steps done in this epoch, and of all its steps.
        nats: the mean training loss of this epoch so far in nats per token, None before it has
            steps.
        valid_nats: the validation loss in nats per token, None before the end of the epoch.
        spread: γ of each layer, None for a deterministic one.
        tokens_per_second: the speed of training in this epoch.
    """

    label: str
    epoch: int
    epochs: int
    step: int
    steps: int
    nats: float | None
    valid_nats: float | None
    spread: list[float | None]
    tokens_per_second: float

    def __str__(self) -> str:
        """Perplexities first, because a terminal of 80 columns cuts off the rest."""
        if self.nats is None:
            return ""
        spread = " ".join("-" if value is None else f"{value:.3f}" for value in self.spread)
        valid = "" if self.valid_nats is None else f", valid {_format(self.valid_nats)}"
        return (
            f"ppl {_format(self.nats)}{valid}, loss {self.nats:.5g} nats/token, γ {spread}, "
            f"{self.tokens_per_second:,.0f} tok/s"
        )


OnSteps = Callable[[Status], None]
"""Called with the status of a training every few steps."""


def is_terminal() -> bool:
    """Whether stderr is a terminal, on which a progress bar can be redrawn."""
    return sys.stderr.isatty()


class PlainLines:
    """Prints lines to stderr, at most one a minute, when stderr is a log file.

    Example:
        >>> show = PlainLines()
        >>> show("epoch 1"), show("epoch 2")  # the second comes too soon
        (None, None)
    """

    def __init__(self) -> None:
        self._next = -math.inf

    def __call__(self, text: str, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now >= self._next:
            print(text, file=sys.stderr, flush=True)
            self._next = now + PLAIN_EVERY


class ProgressBar:
    """Shows the status of a training on stderr: a bar per epoch, or lines if it is no terminal.

    Args:
        quiet: display nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._bar: Any = None
        self._quiet = quiet
        self._lines = PlainLines()

    def __call__(self, status: Status) -> None:
        title = f"{status.label} epoch {status.epoch}/{status.epochs}"
        if self._quiet:
            return
        if not is_terminal():
            if status.nats is not None:
                share = 100 * status.step // max(status.steps, 1)
                self._lines(f"{title} {share} %, {status}")
            return
        if self._bar is None:
            self._bar = tqdm(
                total=status.steps,
                initial=status.step,
                desc=title,
                bar_format="{desc} {percentage:3.0f}%|{bar:12}| {elapsed}{postfix}",
                dynamic_ncols=True,
                mininterval=0.5,
            )
        ended = status.valid_nats is not None
        self._bar.update(status.step - self._bar.n)
        self._bar.set_postfix_str(str(status), refresh=ended)
        if ended:
            self.close()

    def close(self) -> None:
        """Ends the current bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _format(nats: float) -> str:
    value = perplexity(nats)
    return f"{value:.1f}" if value < 1e8 else f"e^{nats:.3g}"
