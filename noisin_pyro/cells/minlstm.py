"""The minLSTM of Feng et al. (2024), "Were RNNs all we needed?", section 3.2.

https://arxiv.org/abs/2410.01201
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.linear import LinearCell, LinearWeights

__all__ = ["MINLSTM", "MinLSTMCell"]


class MinLSTMCell(LinearCell):
    """h_t = f′ z_{t-1} + i′ g_t, with f′ = f/(f + i) and i′ = i/(f + i).

    f = σ(W_f x_t + b_f), i = σ(W_i x_t + b_i), g = W_g x_t + b_g. The quotient is computed as
    f′ = σ(log f − log i), which stays defined if both gates round to zero.
    """

    name = "minlstm"
    gates = 3

    def coefficients(self, gates: Tensor, weights: LinearWeights) -> tuple[Tensor, Tensor]:
        f, i, g = gates.chunk(3, -1)
        log_ratio = F.softplus(-i) - F.softplus(-f)
        return log_ratio.sigmoid(), (-log_ratio).sigmoid() * g


MINLSTM = MinLSTMCell()
