"""tanh by the sigmoid: the same function to the rounding of numbers near 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisin_pyro.kernels.tanh as kernel
from noisin_pyro.kernels.tanh import by_sigmoid, tanh


@pytest.fixture(params=["Intel", "other"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernel, "INTEL", request.param == "Intel")
    return str(request.param)


def values(dtype: torch.dtype, count: int) -> Tensor:
    """Numbers of all sizes, and those without a next one."""
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e30, -1e-30])
    return torch.cat([special.to(dtype), torch.linspace(-12, 12, count, dtype=dtype)])


@pytest.mark.parametrize("count", [3, 5_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_tanh(maker: str, dtype: torch.dtype, count: int) -> None:
    x = values(dtype, count)
    expected, out = torch.tanh(x.double()), torch.empty_like(x)
    before = x.clone()
    assert tanh(x, out) is out
    assert_close(x, before, equal_nan=True)
    assert_close(out.double(), expected, rtol=0, atol=2.5 * torch.finfo(dtype).eps, equal_nan=True)
    assert tanh(x, x) is x
    assert_close(x, out, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_to_torch(maker: str, dtype: torch.dtype) -> None:
    """There 2σ(2x) − 1 would be wrong in the second digit near 0."""
    x = values(dtype, 5_000)
    assert not by_sigmoid(x)
    assert_close(tanh(x, torch.empty_like(x)), torch.tanh(x), rtol=0, atol=0, equal_nan=True)


def test_the_part_of_a_row(maker: str) -> None:
    rows = torch.randn(20, 400)
    part, rest = rows[:, 100:300], rows[:, 300:].clone()
    expected = torch.tanh(part)
    tanh(part, out=part)
    assert_close(rows[:, 100:300], expected, rtol=0, atol=5e-7)
    assert_close(rows[:, 300:], rest, rtol=0, atol=0)


def test_torchs_own_is_taken_on_intels_processors_and_for_few_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There it is the faster of the two."""
    calls: list[int] = []
    monkeypatch.setattr(kernel, "to_tanh_", lambda s: (calls.append(s.numel()), s)[1])
    for intel in (True, False):
        monkeypatch.setattr(kernel, "INTEL", intel)
        for count in (10, 5_000):
            tanh(torch.randn(count), torch.empty(count))
    assert calls == [5_000]
