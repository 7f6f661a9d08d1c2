"""The correction of p(z_t | z_{t-1}) in a learned guide that reads the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.correlated import Correlated
from noisin_pyro.noise.location_scale import LocationScale

__all__ = ["CorrectedSteps", "StateHead"]


class StateHead(nn.Module):
    """q(z_t | h_t, r_t) of one layer: its prior p(z_t | h_t), corrected by numbers from r_t.

        z_t = h_t + γ (m_t + U (g_t ∘ W h_t) + C_t ε),     C_t = diag(s_t) + below(U diag(c_t) W)

    where "below" keeps what is below the diagonal, and γ h_t, with its sign, stands for γ with
    multiplicative noise. At m = g = c = 0 and s = 1 it is the prior. U and W, of rank K, are the
    same for all steps, so a step costs K products with a vector and one H×H product.

    Args:
        units: H.
        rank: K.
        to: dtype and device.
    """

    def __init__(self, units: int, rank: int, **to: Any) -> None:
        super().__init__()
        self.parts = (units, units, rank, rank)  # m, log s, g, c
        self.read = nn.Parameter(torch.randn(rank, units, **to) / units**0.5)
        self.write = nn.Parameter(torch.randn(units, rank, **to) / rank**0.5)

    def forward(self, prior: LocationScale, corrections: Tensor) -> Correlated:
        """q, with batch shape (\\*S, 1, B) and event shape (H,).

        Args:
            prior: p(z_t | h_t), with batch shape (\\*S, 1, B, H).
            corrections: m, log s, g and c side by side, with shape (1, B, 2H + 2K).
        """
        shift, log_scale, gate, link = corrections.split(self.parts, -1)
        shift = shift + (gate * (prior.loc @ self.read.t())) @ self.write.t()
        below = ((self.write * link.unsqueeze(-2)) @ self.read).tril(-1)
        return Correlated(prior, shift, below + log_scale.exp().diag_embed())


class CorrectedSteps(Messenger):
    """Gives the sites ``z_{layer}_{t}`` of an RNN the distributions of a guide's heads.

    Args:
        rnn: the RNN, with a sample site per timestep.
        heads: the head of each noisy layer.
        corrections: the corrections of each noisy layer, T tensors with shape (1, B, 2H + 2K).
    """

    def __init__(
        self,
        rnn: NoisyRecurrence,
        heads: Mapping[int, nn.Module],
        corrections: Mapping[int, Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self._rnn, self._heads, self._corrections = rnn, heads, corrections

    def _pyro_sample(self, msg: Any) -> None:
        for layer, head in self._heads.items():
            prefix = self._rnn._pyro_get_fullname(f"z_{layer}_")  # known only during a call
            if msg["name"].startswith(prefix):
                step = int(msg["name"].removeprefix(prefix))
                msg["fn"] = head(msg["fn"].base_dist, self._corrections[layer][step])
