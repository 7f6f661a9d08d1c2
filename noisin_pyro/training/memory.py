"""Estimates the memory of a run before any is allocated. It imports no torch."""

from __future__ import annotations

from inspect import signature
from typing import Any

from noisin_pyro.memory import available_memory
from noisin_pyro.nn.registry import RNNS
from noisin_pyro.training.config import TrainConfig

__all__ = ["check_average", "check_memory", "ran_out"]

_COPIES = {"sgd": 2, "asgd": 3, "adam": 4}  # weights, gradients, averages or moments
_FLOAT = 4  # bytes


def check_memory(config: TrainConfig, vocab_size: int = 0, training: bool = True) -> None:
    """Refuses a model that cannot fit in this machine's memory.

    The estimate is a lower bound: the weights and, to train them, their gradients, the optimizer's
    state, and the gates and states of one window.

    Args:
        config: the run.
        vocab_size: the size of its vocabulary.
        training: whether the model is to be trained.

    Raises:
        ValueError: if it cannot; the sentence names the sizes and the memory.
    """
    cell, hidden = RNNS[config.cell], config.hidden_size
    width, layers = config.embedding_size, config.layers
    read = width + hidden * (layers - 1) + layers  # inputs and a bias
    if cell.mask is not None:  # it has recurrent weights, and another bias
        read += layers * (hidden + 1)
    head = 1 if config.tied_weights else hidden + 1
    needed = cell.gates * hidden * read + vocab_size * (width + head)
    if training:
        needed *= _COPIES[config.optimizer]
        rows = config.unroll * config.batch_size // config.nodes
        needed += rows * (layers * hidden * (cell.gates + 1) + width)
    _refuse(_FLOAT * needed, f"hidden_size {hidden}, layers {layers} and embedding_size {width}")


def check_average(model: Any, samples: int, filtered: bool = False) -> None:
    """Refuses an average over noisy RNNs that cannot fit in this machine's memory.

    The estimate is a lower bound: the weights, and the states and the noise of one layer in one of
    the windows that :func:`~noisin_pyro.text.evaluation.evaluate` reads by default.

    Args:
        model: the language model.
        samples: the number of noisy RNNs to average over.
        filtered: whether a particle filter weighs them, which runs one step at a time.

    Raises:
        ValueError: if it cannot.
    """
    from noisin_pyro.infer.contexts import has_priors
    from noisin_pyro.text.evaluation import evaluate

    rnn = model.rnn
    defaults = signature(evaluate).parameters
    rows = defaults["batch_size"].default * (1 if filtered else defaults["unroll"].default)
    rows *= 1 if has_priors(model) else samples  # with priors they run one after another
    tensors = 1 if rnn.tied or not any(rnn.noise) else 2
    states = tensors * rows * rnn.hidden_size * rnn.like.element_size()
    sizes = f"hidden_size {rnn.hidden_size}, layers {rnn.num_layers}"
    what = f"{samples} samples, {sizes} and embedding_size {rnn.input_size}"
    _refuse(sum(weight.nbytes for weight in model.parameters()) + states, what)


def _refuse(needed: int, what: str) -> None:
    if needed > (there := available_memory()):
        raise ValueError(
            f"{what} need about {needed / 1e9:,.1f} GB of memory, but there are "
            f"{there / 1e9:,.1f}; lower them"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out; for torch on a CPU its text is read."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(
        error
    )
