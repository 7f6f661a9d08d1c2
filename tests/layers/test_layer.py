"""A layer runs by whichever loop is fastest, and the choice does not change its numbers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

import noisin_pyro.layers.layer as ways
from noisin_pyro import Additive
from noisin_pyro.cells.cells import CELLS
from noisin_pyro.kernels.onednn import packs
from tests.helpers import flat, probed
from tests.proofs.rnns import B, D, H, assert_close, build, start


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.folds])
def test_a_large_layer_takes_the_scan_and_gives_the_same(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additive noise on a CPU: folded into the input or walked, and which of the two."""
    calls: list[str] = []

    def watched(name: str) -> Any:
        way = getattr(ways, name)
        return lambda *args: (calls.append(name), way(*args))[1]

    for name in ("fold", "scan"):
        monkeypatch.setattr(ways, name, watched(name))
    torch.manual_seed(0)
    x = torch.randn(7, B, D, requires_grad=True)
    rnn = build(cell, 2, Additive(dist.Normal(0.0, 1.0)), torch.float32)
    for lengths, lead in ((None, ()), (torch.tensor([3, 7, 1]), ()), (None, (5,))):
        state = start(cell, 2, torch.float32)
        epsilon = [torch.randn(*lead, 7, B, H) for _ in range(2)]
        rows = B * (lead[0] if lead else 1)
        found = {}
        for way, above in (("fold", 1), ("scan", 0)):
            monkeypatch.setattr(ways, "_LARGE_STATE", rows * H + above)
            monkeypatch.setattr(ways, "_WIDE_LSTM", H + above)
            calls.clear()
            outputs = flat(rnn(x, state, lengths=lengths, epsilon=epsilon))
            inputs = [x, *flat(state), *rnn.parameters()]
            found[way] = [*outputs, *torch.autograd.grad(probed(outputs), inputs)]
            assert calls == [way] * 2 if packs(x) else ["fold"] * 2
        assert_close(found["scan"], found["fold"], torch.float32)
