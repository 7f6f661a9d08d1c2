"""A layer runs by whichever loop is fastest, and the choice does not change its numbers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.layers import folding, layer
from tests.helpers import flat, probed
from tests.proofs.rnns import CELLS, B, D, H, assert_close, build, start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.folds])
def test_a_large_layer_takes_the_scan_and_gives_the_same(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additive noise on a CPU: folded into the input or scanned, and which of the two.

    In half precision it is folded always.
    """
    calls: list[str] = []

    def watched(name: str, backend: Any) -> Any:
        return lambda *args: (calls.append(name), backend(*args))[1]

    kind = type(CELLS[cell])
    monkeypatch.setattr(layer, "fold", watched("fold", folding.fold))
    monkeypatch.setattr(kind, "scan", watched("scan", kind.scan))
    torch.manual_seed(0)
    x = torch.randn(7, B, D, dtype=dtype, requires_grad=True)
    rnn = build(cell, 2, Additive(dist.Normal(0.0, 1.0)), dtype)
    for lengths, lead in ((None, ()), (torch.tensor([3, 7, 1]), ()), (None, (5,))):
        state = start(cell, 2, dtype)
        epsilon = [torch.randn(*lead, 7, B, H, dtype=dtype) for _ in range(2)]
        found = {}
        for backend in ("fold", "scan"):
            monkeypatch.setattr(kind, "folding_pays", lambda *_, backend=backend: backend == "fold")
            calls.clear()
            outputs = flat(rnn(x, state, lengths=lengths, epsilon=epsilon))
            inputs = [x, *flat(state), *rnn.parameters()]
            found[backend] = [*outputs, *torch.autograd.grad(probed(outputs), inputs)]
            assert calls == 2 * ["fold" if dtype == torch.bfloat16 else backend]
        if dtype != torch.bfloat16:
            assert_close(found["scan"], found["fold"], dtype)


@pytest.mark.parametrize("kind", [Additive, Multiplicative])
@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.kernel])
def test_one_step_is_torchs_kernel_and_noise_after_it(
    cell: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a decoder, which calls its RNN once a word; a loop prepares much for one step."""
    calls: list[str] = []
    fused = type(CELLS[cell]).deterministic
    monkeypatch.setattr(
        type(CELLS[cell]), "deterministic", lambda *args: (calls.append("kernel"), fused(*args))[1]
    )
    torch.manual_seed(0)
    x = torch.randn(1, B, D, dtype=torch.float64, requires_grad=True)
    rnn = build(cell, 2, kind(dist.Normal(0.0, 1.0)), torch.float64)
    for lengths, lead in ((None, ()), (torch.ones(B, dtype=torch.long), ()), (None, (5,))):
        state = start(cell, 2, torch.float64)
        shape = (*lead, 1, B, H)
        epsilon = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        leaves = [x, *flat(state), *rnn.parameters(), *epsilon]
        found = []
        for measured in (True, False):
            calls.clear()
            with monkeypatch.context() as patch:
                patch.setattr(layer, "_was_measured", lambda _, measured=measured: measured)
                outputs = flat(rnn(x, state, lengths=lengths, epsilon=epsilon))
            found.append([*outputs, *torch.autograd.grad(probed(outputs), leaves)])
            if measured:
                assert calls == 2 * ["kernel"]
        assert_close(found[0], found[1], torch.float64)
