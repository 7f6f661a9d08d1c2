"""The scan and its hand-written backward pass, against the step loop in plain torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from noisin_pyro.cells.base import State, Weights
from noisin_pyro.cells.scan import workspace
from tests.helpers import flat, probed
from tests.proofs.rnns import CELLS, B, H, assert_close, cells


def scan_inputs(
    cell: str, bias: bool, mult: bool, add: bool, steps: int = 3, batch: int = 1, hidden: int = 2
) -> list[Any]:
    gates = {"lstm": 4, "gru": 3}.get(cell, 1) * hidden
    shapes: list[Any] = [
        (steps, batch, gates),
        (batch, hidden),
        (batch, hidden) if cell == "lstm" else None,
        (gates, hidden),
        (gates,) if bias else None,
        (steps, batch, hidden) if mult else None,
        (steps, batch, hidden) if add else None,
    ]
    return [
        None if shape is None else torch.randn(shape, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def scanned(cell: str, inputs: list[Any], scan: str = "scan") -> list[Tensor]:
    gates, z0, c0, w_hh, b_hh, mult, add = inputs
    weights = Weights(gates.new_zeros(len(w_hh), 1), w_hh, None, b_hh)
    return flat(getattr(CELLS[cell], scan)(gates, state_of(z0, c0), weights, mult, add))


def looped(cell: str, inputs: list[Any]) -> list[Tensor]:
    gates, z, c, w_hh, b_hh, mult, add = inputs
    weights = Weights(gates.new_zeros(len(w_hh), 1), w_hh, None, b_hh)
    state, states = state_of(z, c), []
    for t, gate in enumerate(gates):
        h, *clean = CELLS[cell].step(gate, state, weights)
        state = (h * (1 if mult is None else mult[t]) + (0 if add is None else add[t]), *clean)
        states.append(state)
    return [torch.stack(parts) for parts in zip(*states)]


def state_of(z: Tensor, c: Tensor | None) -> State:
    return (z,) if c is None else (z, c)


@cells
@pytest.mark.parametrize("mult", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_scan(cell: str, mult: bool, add: bool) -> None:
    """Its hand-written backward pass: numerically, and against autograd through the loop."""
    for bias in (True, False) if cell == "gru" else (False,):
        inputs = scan_inputs(cell, bias, mult, add)
        leaves = [leaf for leaf in inputs if leaf is not None]
        assert torch.autograd.gradcheck(partial(returning, cell, inputs), leaves)
        inputs = scan_inputs(cell, bias, mult, add, 7, B, H)
        leaves = [leaf for leaf in inputs if leaf is not None]
        ours, theirs = scanned(cell, inputs), looped(cell, inputs)
        assert_close(ours, theirs, torch.float64)
        for part in (slice(None), slice(0, 1), slice(-1, None)):  # both of z and c, z, c
            mine, reference = (
                torch.autograd.grad(
                    probed(outputs[part]),
                    leaves,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for outputs in (ours, theirs)
            )
            assert_close(list(mine), list(reference), torch.float64)


def returning(cell: str, inputs: list[Any], *_: Tensor) -> tuple[Tensor, ...]:
    return tuple(scanned(cell, inputs))


@pytest.mark.parametrize(
    ("cell", "scan"),
    [("tanh", "scan"), ("lstm", "scan"), ("gru", "scan"), ("gru", "scan_reading")],
)
def test_scan_only_gives_gradients_that_are_asked_for(cell: str, scan: str) -> None:
    """Those by the gates and by c0 are by-products; a frozen weight costs no product."""
    inputs = scan_inputs(cell, cell == "gru", True, True)
    leaves = [leaf for leaf in inputs if leaf is not None]
    wanted = torch.autograd.grad(probed(scanned(cell, inputs, scan)), leaves)
    for leaf, gradient in zip(leaves, wanted):
        for other in leaves:
            other.requires_grad_(other is leaf)
        outputs = scanned(cell, inputs, scan)
        computed: list[Any] = []
        node: Any = outputs[0].grad_fn
        node.register_hook(lambda gradients, _, computed=computed: computed.extend(gradients))
        (alone,) = torch.autograd.grad(probed(outputs), [leaf])
        torch.testing.assert_close(alone, gradient, rtol=0, atol=0)
        assert len(computed) == len(leaves)
        for part, found in zip(leaves, computed):
            assert found is None or any(part is one for one in (leaf, inputs[0], inputs[2]))


@pytest.mark.parametrize("cell", ["tanh", "identity", "lstm", "gru"])
def test_a_scan_without_gradients_gives_the_same_in_less_memory(cell: str) -> None:
    """What the backward pass would need is not kept, and the numbers do not change."""
    torch.manual_seed(0)
    steps, batch, width = 6, 3, 4
    width_of_gates = {"lstm": 4, "gru": 3}.get(cell, 1) * width
    w_hh = torch.randn(width_of_gates, width, requires_grad=True)
    weights = Weights(w_hh, w_hh, None, None)
    gates, mult = torch.randn(steps, batch, width_of_gates), torch.rand(steps, batch, width)
    z0 = torch.randn(batch, width)
    c0 = torch.randn(batch, width) if cell == "lstm" else None
    kept = CELLS[cell].scan(gates, state_of(z0, c0), weights, mult)
    with torch.no_grad():
        free = CELLS[cell].scan(gates, state_of(z0, c0), weights, mult)
    for ours, theirs in zip(free, kept):
        assert torch.equal(ours, theirs)
    assert kept[0].requires_grad and not free[0].requires_grad
    assert workspace(gates, width, False).untyped_storage().nbytes() * steps == (
        workspace(gates, width, True).untyped_storage().nbytes()
    )


@cells
@pytest.mark.parametrize("noisy", ["mult", "add", "both"])
def test_second_derivatives_of_the_scan(cell: str, noisy: str) -> None:
    """A Hessian, an influence function, a gradient penalty."""
    torch.manual_seed(0)
    width = {"lstm": 4, "gru": 3}.get(cell, 1) * H
    shapes = {"gates": (3, 2, width), "z0": (2, H), "c0": (2, H), "w_hh": (width, H)}
    shapes |= {"b_hh": (width,), "mult": (3, 2, H), "add": (3, 2, H)}
    unread = set() if cell == "lstm" else {"c0"}
    unread |= {"mult", "add"} - ({noisy} if noisy != "both" else {"mult", "add"})
    unread |= set() if cell == "gru" else {"b_hh"}
    given = {
        name: torch.randn(shape, dtype=torch.float64).mul_(0.7).requires_grad_()
        for name, shape in shapes.items()
        if name not in unread
    }

    def walked(*parts: Tensor) -> Any:
        held = dict.fromkeys(shapes) | dict(zip(given, parts))
        weights = Weights(held["w_hh"], held["w_hh"], None, held["b_hh"])
        found = CELLS[cell].scan(
            held["gates"], state_of(held["z0"], held["c0"]), weights, held["mult"], held["add"]
        )
        return found

    by_hand, readable = (
        torch.autograd.grad(
            probed(list(walked(*given.values()))), [*given.values()], create_graph=graph
        )
        for graph in (False, True)
    )
    assert_close([*readable], [*by_hand], torch.float64)
    assert torch.autograd.gradcheck(walked, tuple(given.values()))
    assert torch.autograd.gradgradcheck(walked, tuple(given.values()))


@cells
@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_either_tanh_in_a_scan(
    cell: str, dtype: torch.dtype, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and every gradient are those of the loop in double precision."""
    monkeypatch.setattr("noisin_pyro.kernels.tanh.INTEL", intel)
    monkeypatch.setattr("noisin_pyro.kernels.tanh._FEWEST", 1)
    torch.manual_seed(3)
    given = [
        None if leaf is None else leaf.detach().to(dtype).requires_grad_()
        for leaf in scan_inputs(cell, cell == "gru", True, True, 7, B, H)
    ]
    exact = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in given]
    found = []
    for inputs, function in ((given, scanned), (exact, looped)):
        outputs = function(cell, inputs)
        leaves = [leaf for leaf in inputs if leaf is not None]
        gradients = torch.autograd.grad(probed([part.double() for part in outputs]), leaves)
        found.append([part.detach().double() for part in (*outputs, *gradients)])
    for ours, theirs in zip(*found):
        tolerance = 40 * torch.finfo(dtype).eps * max(float(theirs.abs().max()), 1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
