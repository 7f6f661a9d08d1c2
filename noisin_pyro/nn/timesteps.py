"""The paper's program, step by step: a sample site for each layer and timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from noisin_pyro.cells.base import State
from noisin_pyro.lengths import last_step
from noisin_pyro.nn.tracks import Layers, Track, cat, joined, run_track
from noisin_pyro.sites import Call

__all__ = ["run_timesteps"]


def run_timesteps(layers: Layers, x: Tensor, call: Call) -> tuple[Tensor, State]:
    """Runs all layers, of which some have a sample site per timestep.

    One tensor per step, with shape (\\*S, 1, B, H), so that Pyro's provenance shows dependence on
    the past only: ``pyro.render_model`` draws an arrow from all that a tensor was computed from.

    Args:
        layers: the layers; a noisy track without a drawn ε samples its states.
        x: the input, with shape (\\*S, T, B, I), 0 in the padding.
        call: the call.

    Returns:
        The top layer's output, with shape (\\*S, T, B, D·H), and the final state.
    """
    finals: list[State] = []
    steps: Sequence[Tensor] = x.split(1, -3)
    for layer, tracks in enumerate(layers.tracks):
        outputs: list[Sequence[Tensor]] = []
        for track in tracks:
            if track.spread is None or track.drawn is not None:
                z, final = run_track(layers, track, cat(steps), call)
                output: Sequence[Tensor] = z.split(1, -3)
            else:
                output, final = _sample_track(layers, track, track.spread, steps, call)
            outputs.append(output)
            finals.append(final)
        steps = [cat(parts, -1) for parts in zip(*outputs)]
        if layers.dropout and layer < len(layers.tracks) - 1:
            steps = layers.between(cat(steps), layer).split(1, -3)
    return cat(steps), joined(finals)


def _sample_track(
    layers: Layers, track: Track, spread: Tensor, steps: Sequence[Tensor], call: Call
) -> tuple[list[Tensor], State]:
    """z_t ~ p(z_t | h_t), h_t = f(x_t, z_{t-1}), for one layer in one direction.

    With ``noise_to="weights"``, z_t ~ p(z_t | h_{t-1}), and h_t = f(x_t, h_{t-1}) with z_t in the
    place of what the recurrent weights read.
    """
    noise, cell, weights, count = track.noise, layers.cell, track.weights, len(steps)
    assert noise is not None
    masks = None if call.mask is None else call.mask.unsqueeze(-1).split(1)  # (1, B, 1)
    state = track.start  # each part (*S, 1, B, H), the 1 standing for time
    zs, hs, states = [], [], []
    for t in reversed(range(count)) if track.reverse else range(count):
        gates = cell.project(steps[t], weights)
        h = state[0]
        if track.noise_to != "weights":
            h, *clean = cell.step(gates, state, weights)
        base = noise.distribution(noise.clamp(h, cell.range), spread)
        distribution: Any = dist.Independent(base, 1)  # torch's own have no ``to_event``
        if not (call.active or distribution.has_rsample) and torch.is_grad_enabled():
            raise ValueError(
                f"{noise} has no pathwise gradient, so a plain backward pass would lose it: "
                "train with NoisinELBO or SVI, or draw samples under torch.no_grad()"
            )
        drawn = call.sample_step(layers.module, f"z_{track.name}_{t}", distribution, t).to(h.dtype)
        if track.noise_to == "weights":  # this step's weights read z, a noisy copy of h_{t-1}
            h, *clean = cell.step_reading(gates, drawn, state, weights)
        new = (h if track.noise_to in ("output", "weights") else drawn, *clean)
        if track.reverse and masks is not None:  # a sequence starts where its padding ends
            new = tuple(torch.where(masks[t], part, old) for part, old in zip(new, state))
        state = new
        zs.append(drawn)
        hs.append(h)
        states.append(state)
    if track.reverse:
        final: State = state
        zs, hs = zs[::-1], hs[::-1]
    else:
        final = tuple(last_step(cat(parts), call.lengths) for parts in zip(*states))
    outputs = hs if track.noise_to in ("recurrence", "weights") else zs
    if masks is not None:
        outputs = [output.masked_fill(~mask, 0) for output, mask in zip(outputs, masks)]
    return outputs, final
