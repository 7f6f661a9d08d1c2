"""The real-gated linear recurrent unit of De et al. (2024), "Griffin", section 2.4.

https://arxiv.org/abs/2402.19427
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.linear import LinearCell, LinearWeights

__all__ = ["RGLRU", "RGLRUCell"]

_C = 8.0  # the paper's c


class RGLRUCell(LinearCell):
    """h_t = a_t z_{t-1} + √(1 − a_t²) (i_t ⊙ g_t), with a_t = σ(Λ)^(c r_t) and c = 8.

    r = σ(W_r x_t + b_r) and i = σ(W_i x_t + b_i). In the paper g is the layer's input, as wide as
    the state; here g = W_g x_t + b_g, so that the input may have any width.
    """

    name = "rglru"
    gates = 3
    decays = True

    def coefficients(self, gates: Tensor, weights: LinearWeights) -> tuple[Tensor, Tensor]:
        assert weights.decay is not None
        r, i, g = gates.chunk(3, -1)
        log_a = _C * F.logsigmoid(weights.decay.to(r.dtype)) * r.sigmoid()
        # The square root's derivative would be infinite where a rounds to 1.
        kept = -torch.expm1(2 * log_a)
        root = kept.clamp_min(torch.finfo(kept.dtype).tiny).sqrt()
        return log_a.exp(), root * (i.sigmoid() * g)


RGLRU = RGLRUCell()
