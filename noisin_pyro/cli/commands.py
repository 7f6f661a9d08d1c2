"""The commands by the names that a user types."""

from __future__ import annotations

from collections.abc import Callable

from noisin_pyro.cli.completion import completion
from noisin_pyro.cli.corpus import corpus
from noisin_pyro.cli.evaluate import evaluate_run
from noisin_pyro.cli.generate import generate
from noisin_pyro.cli.reproduce import reproduce
from noisin_pyro.cli.train import train
from noisin_pyro.cli.tune import tune

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "tune": tune,
    "evaluate": evaluate_run,
    "generate": generate,
    "corpus": corpus,
    "reproduce": reproduce,
    "completion": completion,
}
