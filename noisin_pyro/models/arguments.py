"""Checks of the parts of a model; each error is one sentence with value, rule and fix."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin

from noisin_pyro.nn.recurrence import NoisyRecurrence

__all__ = ["check_emitted", "check_rate", "check_rnn"]


def check_rnn(rnn: Any) -> None:
    """Checks that an RNN can be the transition of a generative process.

    Raises:
        TypeError: if it is no noisy RNN.
        ValueError: if it is ``batch_first`` or ``bidirectional``.
    """
    if not isinstance(rnn, NoisyRecurrence):
        raise TypeError(
            f"rnn must be a NoisyRNN, NoisyLSTM, NoisyGRU or another noisy RNN, got "
            f"{type(rnn).__name__}; wrap torch's with from_torch, your own cell with "
            "NoisyRecurrent"
        )
    if rnn.batch_first:
        raise ValueError("a SequenceModel is time-major: build its RNN with batch_first=False")
    if rnn.bidirectional:
        raise ValueError(
            "bidirectional=True is not supported by a SequenceModel, because a generative "
            "process runs forward in time; use it as an encoder, outside the model"
        )


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless ``rate`` lies in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {rate}")


def check_emitted(emitted: Any, steps: int, batch: int) -> None:
    """Checks what a user's emission returned.

    Pyro would expand a batch shape such as (T, 1, 1) to the plates, and count each density T times.

    Args:
        emitted: the emission's value.
        steps: T.
        batch: B.

    Raises:
        TypeError: if it is no Pyro distribution.
        ValueError: if its batch shape does not end in (T, B).
    """
    if not isinstance(emitted, TorchDistributionMixin):
        raise TypeError(
            "the emission must return a distribution of pyro.distributions, such as "
            f"dist.Normal(net(z), 1.0).to_event(1), got {type(emitted).__name__}"
        )
    if emitted.batch_shape[-2:] != (steps, batch):
        raise ValueError(
            f"the emission's distribution must have batch shape (T, B) = {(steps, batch)}, got "
            f"{tuple(emitted.batch_shape)}; .to_event(1) makes a last dimension part of the event"
        )
