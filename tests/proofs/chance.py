"""A limit for statistical tests, and a gradient as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NO_CHANCE = 7.0
"""A limit for t statistics, exceeded once in 10⁷ with 29 degrees of freedom; here are more."""


def flat_gradient(value: Tensor, model: Any) -> Tensor:
    leaves = list(model.parameters())
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
