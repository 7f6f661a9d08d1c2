"""A kernel for GPUs in the place of the blocks: its layout, and where it gives up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noisin_pyro.kernels import blocked_scan
from noisin_pyro.kernels.linear_scan import linear_loop


def stand_in(a: Tensor, b: Tensor) -> Tensor:
    """As ``accelerated_scan.scalar.scan``: rows with shape (rows, 1, T), from zero."""
    return linear_loop(a.movedim(-1, 0), b.movedim(-1, 0)).movedim(0, -1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 2, 3)])
def test_a_kernel_over_rows_is_the_loop(
    shape: tuple[int, ...], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_scan, "_accelerated_scan", lambda: stand_in)
    a, b, h0 = torch.rand(shape), torch.randn(shape), torch.randn(shape[1:])
    out = torch.empty(shape)
    assert blocked_scan._accelerated(a, b, h0, out, reverse)
    expected = torch.empty(shape)
    blocked_scan._stepwise(a, b, h0, expected, reverse)
    torch.testing.assert_close(out, expected)


def test_a_kernel_whose_products_overflow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_scan, "_accelerated_scan", lambda: stand_in)
    a, out = torch.full((40, 1), 1e30), torch.empty(40, 1)
    assert not blocked_scan._accelerated(a, a, torch.ones(1), out, False)
