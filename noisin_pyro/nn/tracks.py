"""The layers of a noisy RNN in one call. Each layer has a track for each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from pyro.nn import PyroModule
from torch import Tensor

from noisin_pyro.cells.base import Cell, State
from noisin_pyro.layers.layer import NoiseTo, add_noise, dropout, noisy_layer
from noisin_pyro.lengths import reverse
from noisin_pyro.nn.provenance import tracked
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.sites import Call, Readout

__all__ = ["Layers", "Track", "cat", "joined", "make_layers", "run_track"]


class Track(NamedTuple):
    """One layer in one direction.

    Attributes:
        name: the suffix of its sites: ``0``, or ``0_reverse``.
        reverse: whether it runs backwards in time.
        noise: the layer's noise, None if it has none.
        spread: γ; None if the track runs without noise in this call.
        weights: the track's weights, in the form of the cell.
        start: the state before the first step, each part with shape (\\*S, 1, B, H).
        drawn: ε with shape (\\*S, T or 1, B, H); None for a site per timestep.
        noise_to: where the noise goes.
    """

    name: str
    reverse: bool
    noise: Noise | None
    spread: Tensor | None
    weights: Any
    start: State
    drawn: Tensor | None
    noise_to: NoiseTo


@dataclass(frozen=True)
class Layers:
    """All layers of a noisy RNN, and the options that they share.

    Attributes:
        module: the RNN, whose Pyro name prefixes the sites.
        cell: the transition.
        tied: whether the mask of dropout is the same in all steps.
        dropout: the probability of zeroing a unit between layers; 0 if dropout does not act.
        tracks: the tracks of each layer, forward then backward.
    """

    module: PyroModule
    cell: Cell[Any]
    tied: bool
    dropout: float
    tracks: list[list[Track]]

    def between(self, x: Tensor, layer: int) -> Tensor:
        """The next layer's input, from the output of ``layer`` with shape (\\*S, T, B, D·H)."""
        if not self.dropout or layer == len(self.tracks) - 1:
            return x
        return dropout(x, self.dropout, True, self.tied)


def make_layers(
    module: Any,
    cell: Cell[Any],
    order: Sequence[tuple[int, str]],
    weights: Sequence[Any],
    state: State,
    spreads: Sequence[Tensor | None],
    drawn: Sequence[Tensor | None],
    readout: Readout,
    rate: float,
) -> Layers:
    """The layers of one call of a noisy RNN.

    Args:
        module: the noisy RNN.
        cell: its transition, with zoneout if there is any.
        order: layer and suffix of the direction of each track; the following lists have this order.
        weights: the weights of each track.
        state: the initial state, each part with shape (\\*S, D·L, B, H).
        spreads: γ of each track; None for one that runs without noise.
        drawn: ε of each track; None for one without noise or with a site per timestep.
        readout: ``"noisy"`` or ``"mean"``: whether the top layer's output is z or h.
        rate: the probability of zeroing a unit between layers; 0 if dropout does not act.
    """
    tracks: list[list[Track]] = [[] for _ in module.noise]
    for index, (layer, suffix) in enumerate(order):
        start = tuple(part[..., index : index + 1, :, :] for part in state)
        spread, noise_to = spreads[index], module.noise_to
        if readout == "mean" and layer == len(tracks) - 1:
            # With noise_to="output" z is the output alone, so the top layer needs no noise.
            spread = None if noise_to == "output" else spread
            noise_to = "weights" if noise_to == "weights" else "recurrence"
        noise, weight, epsilon = module.noise[layer], weights[index], drawn[index]
        parts = (noise, spread, weight, start, epsilon, noise_to)
        tracks[layer].append(Track(f"{layer}{suffix}", bool(suffix), *parts))
    return Layers(module, cell, module.tied, rate, tracks)


def run_track(layers: Layers, track: Track, x: Tensor, call: Call) -> tuple[Tensor, State]:
    """Runs a track without noise, or with noise that is already drawn.

    Args:
        layers: the layers that the track belongs to.
        track: the track.
        x: the track's input, with shape (\\*S, T, B, I).
        call: the call's options.

    Returns:
        The track's output, with shape (\\*S, T, B, H), and its final state, each part with shape
        (\\*S, 1, B, H).
    """
    lengths = call.lengths
    if track.reverse:
        x = reverse(x, lengths)
    mult = add = None
    noise_to: NoiseTo = "both"
    if track.spread is not None:
        noise, noise_to = cast(AffineNoise, track.noise), track.noise_to
        assert track.drawn is not None
        mult, add = noise.affine(track.drawn, track.spread)
        if track.reverse:
            mult, add = (_reversed(part, call) for part in (mult, add))
    parts = (x, track.start, track.weights, mult, add, lengths)
    output, final = tracked(noisy_layer, layers.cell, *parts, noise_to=noise_to)
    if track.spread is not None and call.active:
        z = output
        if noise_to == "recurrence":
            z = add_noise(output, mult, add)
        elif noise_to == "weights":
            z = add_noise(_before(track.start[0], output), mult, add)
        z = reverse(z, lengths) if track.reverse else z
        call.record(layers.module, f"z_{track.name}", z)
    return (reverse(output, lengths) if track.reverse else output), final


def _before(start: Tensor, states: Tensor) -> Tensor:
    """The states before each step, with shape (\\*S, T, B, H)."""
    first = start.expand(states[..., :1, :, :].shape)
    return torch.cat([first, states[..., :-1, :, :]], -3)


def _reversed(part: Tensor | None, call: Call) -> Tensor | None:
    """Noise reversed in time, unless all steps share it."""
    return part if part is None or part.shape[-3] == 1 else reverse(part, call.lengths)


def cat(parts: Any, dim: int = -3) -> Tensor:
    """Concatenates tensors along time, layers or units, and broadcasts their particles \\*S."""
    if len(parts) == 1:
        return parts[0]  # type: ignore[no-any-return]
    return torch.cat(torch.broadcast_tensors(*parts), dim)


def joined(finals: list[State]) -> State:
    """The final states of all tracks, each part with shape (\\*S, D·L, B, H)."""
    return tuple(cat(parts) for parts in zip(*finals))
