"""Context managers for predictions: a seed, and values for γ and weights with priors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.parameters import own_store, priors_of

__all__ = ["draw_priors", "given", "has_priors", "seeded_by"]


@contextmanager
def seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's random state from a generator, and restores it afterwards.

    Args:
        generator: a generator on any device; with None the random state is neither seeded nor
            restored.
        device: the device whose random state is seeded, beside that of the CPU.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    kind: Any = getattr(torch, device.type)
    several = hasattr(kind, "device")  # Apple's mps is a single device, and has no current one
    index = device.index
    if index is None:
        index = kind.current_device() if several else 0
    with torch.random.fork_rng([index], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        with kind.device(index) if several else nullcontext():  # it may not be the current one
            kind.manual_seed(seed)
        yield


def has_priors(model: SequenceModel) -> bool:
    """Whether γ or a weight has a prior."""
    return any(True for _ in priors_of(model))


def draw_priors(model: SequenceModel, x: Tensor) -> dict[str, Tensor]:
    """Draws γ and weights from their priors.

    Args:
        model: the model.
        x: any input of it.

    Returns:
        The draws by the names of their sites.
    """
    with own_store():
        trace = poutine.trace(model.latents).get_trace(x, sample=False)
    nodes: dict[str, Any] = trace.nodes
    return {name: nodes[name]["value"] for name in trace.stochastic_nodes}


@contextmanager
def given(values: dict[str, Tensor] | None) -> Iterator[None]:
    """Gives γ and weights the values of :func:`draw_priors`; None changes nothing."""
    if values is None:
        yield
    else:
        with own_store(), poutine.condition(data=values):
            yield
