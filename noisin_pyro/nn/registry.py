"""The noisy RNNs by their names on the command line; torch is imported only when one is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["RNNS", "build_rnn"]


class Entry(NamedTuple):
    """An RNN as a class and fixed arguments.

    Attributes:
        module: the path of the module with the class.
        kind: the name of the class.
        arguments: fixed arguments of the class.
        mask: the ``noise_to`` that puts noise on the operand of the recurrent weights alone, as
            variational dropout does; None for an RNN without recurrent weights.
        gates: the number of rows of its weights for each hidden unit.
    """

    module: str
    kind: str
    arguments: Mapping[str, Any]
    mask: str | None
    gates: int


def _elman(nonlinearity: str) -> Entry:
    return Entry("noisin_pyro.nn.rnn", "NoisyRNN", {"nonlinearity": nonlinearity}, "recurrence", 1)


#: The RNNs by name; a new RNN is a new line.
RNNS: Mapping[str, Entry] = MappingProxyType(
    {
        "rnn_tanh": _elman("tanh"),
        "rnn_relu": _elman("relu"),
        "rnn_sigmoid": _elman("sigmoid"),
        "lstm": Entry("noisin_pyro.nn.rnn", "NoisyLSTM", {}, "recurrence", 4),
        "gru": Entry("noisin_pyro.nn.rnn", "NoisyGRU", {}, "weights", 3),
        "mingru": Entry("noisin_pyro.nn.linear_rnns", "NoisyMinGRU", {}, None, 2),
        "minlstm": Entry("noisin_pyro.nn.linear_rnns", "NoisyMinLSTM", {}, None, 3),
        "rglru": Entry("noisin_pyro.nn.linear_rnns", "NoisyRGLRU", {}, None, 3),
    }
)


def build_rnn(name: str, *sizes: int, **options: Any) -> Any:
    """Builds a noisy RNN by its name.

    Args:
        name: one of :data:`RNNS`.
        *sizes: input size, hidden size and number of layers.
        **options: further arguments of its class.

    Raises:
        ValueError: if the name is unknown, or as the class.

    Example:
        >>> build_rnn("rnn_sigmoid", 3, 5, 1).nonlinearity
        'sigmoid'
    """
    if name not in RNNS:
        raise ValueError(f"unknown cell {name!r}; the known ones are {', '.join(RNNS)}")
    entry = RNNS[name]
    kind = getattr(import_module(entry.module), entry.kind)
    return kind(*sizes, **entry.arguments, **options)
