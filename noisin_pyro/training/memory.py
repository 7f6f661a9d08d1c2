"""Estimates the memory of a run before any is allocated. It imports no torch."""

from __future__ import annotations

from typing import Any

from noisin_pyro.memory import available_memory
from noisin_pyro.training.config import TrainConfig

__all__ = ["check_average", "check_memory", "ran_out"]

_GATES = {"lstm": 4, "gru": 3}  # any other cell has one
_COPIES = {"sgd": 2, "asgd": 3, "adam": 4}  # weights, gradients, averages or moments
_FLOAT = 4  # bytes


def check_memory(config: TrainConfig, vocab_size: int = 0, samples: int = 0) -> None:
    """Refuses a model or an average that cannot fit in this machine's memory.

    The estimate is a lower bound: the weights, their gradients and the optimizer's state, and the
    activations of one window.

    Args:
        config: the run.
        vocab_size: the size of its vocabulary.
        samples: 0 to train; to evaluate, the number of noisy RNNs to average over, at least 1.

    Raises:
        ValueError: if it cannot; the sentence names the sizes and the memory.
    """
    hidden, width, gates = config.hidden_size, config.embedding_size, _GATES.get(config.cell, 1)
    inputs = width + hidden * (config.layers - 1)
    weights = gates * hidden * (inputs + config.layers * (hidden + 2))
    weights += vocab_size * (width + hidden + 1)
    streams = 70 * 10 * samples if samples else config.unroll * config.batch_size
    units = streams * (config.layers * hidden * (gates + 1) + width)
    needed = _FLOAT * (weights * (1 if samples else _COPIES[config.optimizer]) + units)
    _refuse(needed, samples, hidden, config.layers, width)


def check_average(model: Any, samples: int) -> None:
    """Refuses an average that cannot fit in this machine's memory, as :func:`check_memory` does.

    Args:
        model: the language model.
        samples: the number of noisy RNNs to average over.

    Raises:
        ValueError: if it cannot.
    """
    rnn = model.rnn
    gates = rnn.weight_ih_l0.shape[0] // rnn.hidden_size
    units = 70 * 10 * samples * (rnn.num_layers * rnn.hidden_size * (gates + 1) + rnn.input_size)
    needed = _FLOAT * (sum(weight.numel() for weight in model.parameters()) + units)
    _refuse(needed, samples, rnn.hidden_size, rnn.num_layers, rnn.input_size)


def _refuse(needed: int, samples: int, hidden: int, layers: int, width: int) -> None:
    if needed > (there := available_memory()):
        what = f"{samples} samples, " if samples else ""
        raise ValueError(
            f"{what}hidden_size {hidden}, layers {layers} and embedding_size {width} need "
            f"about {needed / 1e9:,.1f} GB of memory, but there are {there / 1e9:,.1f}; lower them"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out; for torch on a CPU its text is read."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(
        error
    )
