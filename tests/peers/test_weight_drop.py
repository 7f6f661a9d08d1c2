"""A user's own weight drop around a noisy LSTM, as in AWD-LSTM.

Merity, Keskar and Socher (2018), https://arxiv.org/abs/1708.02182: DropConnect on the recurrent
weights, one mask for all steps.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisin_pyro import Multiplicative, NoisyLSTM

T, B, D, H = 6, 4, 3, 5


class WeightDrop(nn.Module):
    """Zeroes a share of a weight, and scales up what is left."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, self.rate, self.training)


def test_weight_drop_around_a_noisy_lstm() -> None:
    """Masks act in training, gradients reach the weights, and eval() is the plain LSTM."""
    lstm = NoisyLSTM(D, H, 2, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.3)
    plain = nn.LSTM(D, H, 2)
    plain.load_state_dict(lstm.state_dict(), strict=False)
    for layer in range(2):
        parametrize.register_parametrization(lstm, f"weight_hh_l{layer}", WeightDrop(0.5))
    x = torch.randn(T, B, D)
    mean_paths = [lstm(x, sample=False)[0] for _ in range(2)]
    assert not torch.equal(*mean_paths)  # the weights differ, with the noise switched off
    lstm(x)[0].square().sum().backward()
    raw = lstm.parametrizations.weight_hh_l0.original
    share = (raw.grad == 0).double().mean()
    assert 0.3 < share < 0.7  # what was dropped has no gradient; 100 weights, 7 deviations wide
    lstm.eval()
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    before = raw.detach().clone()
    optimizer.step()
    assert not torch.equal(before, raw)
    assert not torch.allclose(lstm(x)[0], plain(x)[0])
