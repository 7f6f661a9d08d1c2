"""Noise on what the recurrent weights read (``noise_to="weights"``), against a loop written out."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Multiplicative, NoisyMinGRU, NoisyRecurrent
from noisin_pyro.cells.base import Cell, Weights
from noisin_pyro.cells.gru import GRU
from tests.helpers import flat, make_rnn, probed

NOISES = (Additive(dist.Normal(0.0, 1.0)), Multiplicative(dist.Bernoulli(0.7)))
cells = pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "relu", "sigmoid", "identity"])
noises = pytest.mark.parametrize("noise", NOISES, ids=str)
T, B, D, H = 5, 3, 3, 4


def read_by_gates(name: str, x: Tensor, read: Tensor, h: Tensor, c: Tensor, weights: Any) -> Any:
    """One step, typed a second time: (h, c)."""
    w_ih, w_hh, b_ih, b_hh = weights
    a, p = x @ w_ih.T + b_ih, read @ w_hh.T + b_hh
    if name == "gru":
        (r, u, n), (r_p, u_p, n_p) = a.chunk(3, -1), p.chunk(3, -1)
        r, u = torch.sigmoid(r + r_p), torch.sigmoid(u + u_p)
        return (1 - u) * torch.tanh(n + r * n_p) + u * h, c
    if name == "lstm":
        i, f, g, o = (a + p).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    act: Any = {"identity": lambda v: v}.get(name) or getattr(torch, name)
    return act(a + p), c


@noises
@cells
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_a_loop_written_out(name: str, noise: Any, tied: bool) -> None:
    """Values and gradients, with the noise and a carried state given."""
    options: dict[str, Any] = {"noise": noise, "spread": 0.6, "tied": tied, "dtype": torch.float64}
    rnn = make_rnn(name, D, H, noise_to="weights", **options)
    x = torch.randn(T, B, D, dtype=torch.float64)
    start = [torch.randn(1, B, H, dtype=torch.float64).requires_grad_() for _ in range(2)]
    epsilon = rnn.draw_noise(T, B)
    output, final = rnn(x, tuple(start) if name == "lstm" else start[0], epsilon=epsilon)
    mult, add = noise.affine(epsilon[0], rnn.spread[0])
    h, c = start[0][0], start[1][0]
    outputs = []
    for t in range(T):
        read = h if mult is None else h * mult[0 if tied else t]
        read = read if add is None else read + add[0 if tied else t]
        (weights,) = rnn._weights()
        h, c = read_by_gates(name, x[t], read, h, c, weights)
        outputs.append(h)
    truth = torch.stack(outputs)
    torch.testing.assert_close(output, truth)
    torch.testing.assert_close(flat(final)[0][0], h)
    leaves = [*rnn.parameters(), start[0], *(start[1:] if name == "lstm" else [])]
    for ours, theirs in zip(
        torch.autograd.grad(probed([output, *flat(final)]), leaves),
        torch.autograd.grad(
            probed([truth, h.unsqueeze(0), *([c.unsqueeze(0)] if name == "lstm" else [])]), leaves
        ),
    ):
        torch.testing.assert_close(ours, theirs)


@noises
@cells
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 2, 4])])
def test_by_timestep_and_by_sequence(name: str, noise: Any, lengths: Tensor | None) -> None:
    """The same reads give the same output and final state, in both directions."""
    options = {"noise": noise, "spread": 0.6, "noise_to": "weights", "dtype": torch.float64}
    options["bidirectional"] = True
    rnn = make_rnn(name, D, H, 2, **options)
    stepped = make_rnn(name, D, H, 2, sites="timestep", **options)
    stepped.load_state_dict(rnn.state_dict())
    x = torch.randn(T, B, D, dtype=torch.float64)
    trace = poutine.trace(rnn).get_trace(x, lengths=lengths)
    z, state = trace.nodes["_RETURN"]["value"]
    data = {
        f"z_{track}_{t}": trace.nodes[f"z_{track}"]["value"][t : t + 1].detach()
        for track in ("0", "0_reverse", "1", "1_reverse")
        for t in range(T)
    }
    again = poutine.condition(stepped, data)(x, lengths=lengths)
    torch.testing.assert_close(again[0], z)
    for ours, theirs in zip(flat(again[1]), flat(state)):
        torch.testing.assert_close(ours, theirs)


@cells
def test_two_windows_are_one_long_sequence(name: str) -> None:
    rnn = make_rnn(
        name, D, H, 2, noise=NOISES[0], spread=0.6, noise_to="weights", dtype=torch.float64
    )
    x = torch.randn(8, 2, D, dtype=torch.float64)
    epsilon = rnn.draw_noise(8, 2)
    whole, end = rnn(x, epsilon=epsilon)
    first, state = rnn(x[:1], epsilon=[e[:1] for e in epsilon])
    second, last = rnn(x[1:], state, epsilon=[e[1:] for e in epsilon])
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for ours, theirs in zip(flat(last), flat(end)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mult", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_backward_pass_by_hand(mult: bool, add: bool, bias: bool) -> None:
    """Numerically, against autograd through the readable form, and once more differentiated."""
    steps, batch, hidden = 4, 2, 3
    shapes: list[Any] = [(steps, batch, 3 * hidden), (batch, hidden), (3 * hidden, hidden)]
    shapes += [(3 * hidden,)] if bias else []
    shapes += [(steps, batch, hidden)] * (mult + add)
    leaves = [torch.randn(s, dtype=torch.float64).mul_(0.7).requires_grad_() for s in shapes]

    def ran(*parts: Tensor, scan: Any = GRU.scan_reading) -> Any:
        gates, h0, w_hh, *rest = parts
        b_hh = rest.pop(0) if bias else None
        m = rest.pop(0) if mult else None
        weights = Weights(w_hh, w_hh, None, b_hh)
        return scan(gates, (h0,), weights, m, rest.pop(0) if add else None)[0]

    readable = lambda *given: Cell.scan_reading(GRU, *given)  # noqa: E731
    torch.testing.assert_close(ran(*leaves), ran(*leaves, scan=readable))
    for ours, theirs in zip(
        torch.autograd.grad(probed([ran(*leaves)]), leaves),
        torch.autograd.grad(probed([ran(*leaves, scan=readable)]), leaves),
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(ran, tuple(leaves))
    assert torch.autograd.gradgradcheck(ran, tuple(leaves))
    single = [leaf.detach().float() for leaf in leaves]  # oneDNN's products, and no gradient
    torch.testing.assert_close(ran(*single), ran(*leaves).float(), rtol=1e-4, atol=1e-5)


def test_a_cell_without_recurrent_weights_is_refused() -> None:
    sentence = "^noise_to='weights' is for NoisyRNN, NoisyLSTM and NoisyGRU, got {}; use noise_to="
    with pytest.raises(ValueError, match=sentence.format("NoisyMinGRU")):
        NoisyMinGRU(D, H, noise=NOISES[0], noise_to="weights")
    with pytest.raises(ValueError, match=sentence.format("NoisyRecurrent")):
        NoisyRecurrent(torch.nn.GRUCell(D, H), noise=NOISES[0], noise_to="weights")
