"""What a prediction changes for its time: the mode of the model, the seed, random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.sites import own_store

__all__ = ["draw_priors", "evaluating", "given", "has_priors", "seeded_by"]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each of its parts as it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Torch's random state from a generator's next number, and afterwards as it was.

    Args:
        generator: any; None leaves torch's random state in its place.
        device: the one whose state is set beside that of the CPU.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    kind: Any = getattr(torch, device.type)
    index = [] if device.type == "cpu" else [device.index or kind.current_device()]
    with torch.random.fork_rng(index, device_type="cuda" if device.type == "cpu" else device.type):
        torch.default_generator.manual_seed(seed)
        if index:
            kind.manual_seed(seed)
        yield


def has_priors(model: SequenceModel) -> bool:
    """Whether γ or a weight is random."""
    return any(getattr(module, "_pyro_samples", ()) for module in model.modules())


def draw_priors(model: SequenceModel, x: Tensor) -> dict[str, Tensor]:
    """A draw from the priors on γ and on weights, by the names of their sites.

    Args:
        model: the model.
        x: any input of it.
    """
    with own_store():
        trace = poutine.trace(model.latents).get_trace(x, sample=False)
    nodes: dict[str, Any] = trace.nodes
    return {name: nodes[name]["value"] for name in trace.stochastic_nodes}


@contextmanager
def given(values: dict[str, Tensor] | None) -> Iterator[None]:
    """A model whose γ and weights are those of :func:`draw_priors`; None changes nothing."""
    if values is None:
        yield
    else:
        with own_store(), poutine.condition(data=values):
            yield
