"""Small products: both ways of computing them are the same function."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from noisin_pyro import Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN, products


def test_this_machine_takes_the_fast_way() -> None:
    """Or the comparisons below would compare ``addmm`` with itself."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a torch with oneDNN")
    assert products.packs(torch.eye(3))
    assert not products.packs(torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (20, 64, 16), (160, 33, 130)])
def test_it_is_a_product(
    shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype, count: int
) -> None:
    rows, width, depth = shape
    weight = torch.randn(depth, width, dtype=dtype).t() if transposed else torch.randn(width, depth)
    weight = weight.to(dtype)
    x, addend = torch.randn(rows, depth, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    out = torch.empty(2, rows, width, dtype=dtype)[1]
    returned = products.small_products(weight, rows, count)(addend, x, out)
    assert returned.data_ptr() == out.data_ptr()
    exact = addend.double() + x.double() @ weight.double().T
    assert_close(out.double(), exact, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=1e-5)


def test_without_onednn_it_is_a_product_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_works", lambda: False)
    weight, x, addend = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3, 5)
    out = products.small_products(weight, 3, 35)(addend, x, torch.empty(3, 5))
    assert_close(out, addend + x @ weight.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [NoisyRNN, NoisyLSTM, NoisyGRU])
def test_a_recurrence_is_the_same_either_way(
    kind: Any, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and every gradient, by oneDNN in float32, by ``addmm``, and in float64."""
    torch.manual_seed(1)
    rnn = kind(6, 24, 2, bias=bias, noise=Multiplicative(dist.Laplace(0.0, 1.0)), spread=0.5)
    x = torch.randn(35, 20, 6)
    epsilon = rnn.draw_noise(35, 20)

    def run(module: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        module.zero_grad()
        output, _ = module(x.to(dtype), epsilon=[eps.to(dtype) for eps in epsilon])
        (output * torch.linspace(-1, 1, 24, dtype=dtype)).sum().backward()
        return [output.detach(), *(p.grad.clone() for p in module.parameters())]

    fast = run(rnn, torch.float32)
    monkeypatch.setattr(products, "_works", lambda: False)
    plain = run(rnn, torch.float32)
    exact = run(rnn.double(), torch.float64)
    for one, other, reference in zip(fast, plain, exact):
        size = float(reference.abs().max())
        assert_close(one.double(), reference, atol=2e-5 * size, rtol=0)
        assert_close(other.double(), reference, atol=2e-5 * size, rtol=0)
