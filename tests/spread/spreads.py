"""What the tests of spreads share: a module with a γ, and a small noisy LSTM."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule

from noisin_pyro.nn.rnn import NoisyLSTM
from noisin_pyro.noise.affine import Additive
from noisin_pyro.spread.conversion import as_spread

UNITS = 4


def attached(spread: Any, dtype: torch.dtype = torch.float32) -> PyroModule:
    """A module with γ as its attribute ``gamma``."""
    module = PyroModule()
    as_spread(spread).attach(module, "gamma", UNITS, torch.empty((), dtype=dtype))
    return module


def read(spread: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """γ as a layer reads it."""
    return as_spread(spread).read(attached(spread, dtype), "gamma", torch.empty((), dtype=dtype))


def lstm(layers: int = 1, **options: Any) -> NoisyLSTM:
    return NoisyLSTM(3, UNITS, layers, noise=Additive(dist.Normal(0.0, 1.0)), **options)
