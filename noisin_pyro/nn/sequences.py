"""A noisy RNN layer by layer, with noise that is already drawn for whole sequences."""

from __future__ import annotations

from torch import Tensor

from noisin_pyro.cells.base import State
from noisin_pyro.nn.tracks import Layers, cat, joined, run_track
from noisin_pyro.sites import Call

__all__ = ["run_sequences"]


def run_sequences(layers: Layers, x: Tensor, call: Call) -> tuple[Tensor, State]:
    """Runs all layers.

    Args:
        layers: the layers, with ε of each noisy track.
        x: the input, with shape (\\*S, T, B, I), 0 in the padding.
        call: the call's options.

    Returns:
        The top layer's output, with shape (\\*S, T, B, D·H), and the final state.
    """
    finals: list[State] = []
    for layer, tracks in enumerate(layers.tracks):
        outputs = []
        for track in tracks:
            output, final = run_track(layers, track, x, call)
            outputs.append(output)
            finals.append(final)
        x = layers.between(cat(outputs, -1), layer)
    return x, joined(finals)
