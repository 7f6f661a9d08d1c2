"""The minGRU of Feng et al. (2024), "Were RNNs all we needed?", section 3.1.

https://arxiv.org/abs/2410.01201
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisin_pyro.cells.linear import LinearCell, LinearWeights

__all__ = ["MINGRU", "MinGRUCell"]


class MinGRUCell(LinearCell):
    """h_t = (1 − u_t) z_{t-1} + u_t g_t, with u = σ(W_u x_t + b_u) and g = W_g x_t + b_g.

    This is the paper's first form. Its second one, in log space, needs positive states, and noise
    can change a state's sign.
    """

    name = "mingru"
    gates = 2

    def coefficients(self, gates: Tensor, weights: LinearWeights) -> tuple[Tensor, Tensor]:
        u, g = gates.chunk(2, -1)
        u = u.sigmoid()
        return 1 - u, u * g

    def noisy(
        self, gates: Tensor, weights: LinearWeights, mult: Tensor | None, add: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """m (1 − u) = m − v and m u g + n = v g + n, with v = m u, which saves one product."""
        if mult is None:
            return super().noisy(gates, weights, mult, add)
        u, g = gates.chunk(2, -1)
        v = mult * u.sigmoid()
        return mult - v, v * g if add is None else torch.addcmul(add, v, g)


MINGRU = MinGRUCell()
