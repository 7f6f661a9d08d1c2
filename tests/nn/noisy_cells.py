"""Sizes and noises that the tests of NoisyRecurrent share."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from noisin_pyro import Additive, MeanParameterized, Multiplicative

D, H, T, B = 3, 4, 6, 3
LENGTHS = torch.tensor([6, 2, 4])
NOISES: dict[str, Any] = {
    "none": None,
    "additive": Additive(dist.Gumbel(0.0, 1.0)),
    "multiplicative": Multiplicative(dist.Bernoulli(0.7)),
    "mean": MeanParameterized(lambda m, s: dist.Normal(m, s)),
    "mixed": [Additive(dist.Normal(0.0, 1.0)), Multiplicative(dist.Laplace(0.0, 1.0))],
}
