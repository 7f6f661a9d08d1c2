"""Zoneout against its definition written out (Krueger et al. 2016, equations 4 to 6).

https://arxiv.org/abs/1606.01305
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyMinGRU,
    NoisyRecurrent,
    NoisyRGLRU,
    NoisyRNN,
    PriorGuide,
    from_torch,
    to_torch,
)
from noisin_pyro.nn.registry import RNNS, build_rnn
from tests.helpers import flat, probed

T, B, D, H = 5, 3, 3, 4
RATES = {"lstm": (0.3, 0.6)}  # of h and of c; any other cell has one state
NOISES = {
    "none": None,
    "additive": Additive(dist.Normal(0.0, 1.0)),
    "multiplicative": Multiplicative(dist.Normal(0.0, 1.0)),
}
cells = pytest.mark.parametrize("cell", RNNS)


def make(cell: str, layers: int = 1, **options: Any) -> Any:
    options = {"zoneout": RATES.get(cell, 0.4), "spread": 0.5, "dtype": torch.float64, **options}
    return build_rnn(cell, D, H, layers, **options)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is drawn for zoneout, in the order of drawing: for each layer one mask a state."""
    drawn: list[Tensor] = []
    plain = torch.bernoulli

    def recording(p: Tensor) -> Tensor:
        drawn.append(plain(p))
        return drawn[-1]

    monkeypatch.setattr(torch, "bernoulli", recording)
    return drawn


def transition(cell: str, rnn: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the cell computes, for torch's cells as the textbooks have it."""
    (weights,) = rnn._weights()
    if cell not in ("lstm", "gru", "rnn_tanh"):
        new: tuple[Tensor, ...] = rnn.cell.step(rnn.cell.project(x, weights), state, weights)
        return new
    w_ih, w_hh, b_ih, b_hh = weights
    a, p = x @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh
    if cell == "rnn_tanh":
        return (torch.tanh(a + p),)
    if cell == "gru":
        (r, u, n), (r_p, u_p, n_p) = a.chunk(3, -1), p.chunk(3, -1)
        r, u = torch.sigmoid(r + r_p), torch.sigmoid(u + u_p)
        return ((1 - u) * torch.tanh(n + r * n_p) + u * state[0],)
    i, f, g, o = (a + p).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def krueger(
    cell: str, rnn: Any, x: Tensor, state: tuple[Tensor, ...], kept: list[Any], noise: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The noisy outputs and the final state, by a loop over steps."""
    mult, add = noise
    outputs = []
    for t, step in enumerate(x):
        new = transition(cell, rnn, step, state)
        h, *clean = (d[t] * old + (1 - d[t]) * part for d, old, part in zip(kept, state, new))
        z = h if mult is None else h * mult[t]
        z = z if add is None else z + add[t]
        outputs.append(z)
        state = (z, *clean)
    return torch.stack(outputs), state


@cells
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_krueger_et_al(cell: str, noise: str, training: bool, masks: list[Tensor]) -> None:
    """Masks in training and the rates in evaluation: values, final state and every gradient."""
    torch.manual_seed(1)
    rnn = make(cell, noise=NOISES[noise]).train(training)
    parts = len(rnn.zoneout)
    x = torch.randn(T, B, D, dtype=torch.float64)
    start = [torch.randn(1, B, H, dtype=torch.float64).requires_grad_() for _ in range(parts)]
    epsilon = rnn.draw_noise(T, B)
    affine: Any = (None, None)
    if NOISES[noise] is not None:
        affine = NOISES[noise].affine(epsilon[0], rnn.spread[0])
    options = {} if NOISES[noise] is None else {"epsilon": epsilon, "sample": True}
    output, final = rnn(x, tuple(start) if parts > 1 else start[0], **options)
    assert len(masks) == (parts if training else 0)
    kept: list[Any] = masks if training else [[rate] * T for rate in rnn.zoneout]
    for mask in masks:
        assert mask.shape == (T, B, H) and 0 < mask.mean() < 1
    truth, last = krueger(cell, rnn, x, tuple(s[0] for s in start), kept, affine)
    torch.testing.assert_close(output, truth)
    for ours, theirs in zip(flat(final), last):
        torch.testing.assert_close(ours[0], theirs)
    leaves = [*rnn.parameters(), *start]
    for ours, theirs in zip(
        torch.autograd.grad(probed([output, *flat(final)]), leaves),
        torch.autograd.grad(probed([truth, *(part.unsqueeze(0) for part in last)]), leaves),
    ):
        torch.testing.assert_close(ours, theirs)


@cells
@pytest.mark.parametrize("noise_to", ["output", "recurrence", "weights"])
def test_with_noise_in_one_place(cell: str, noise_to: Any, masks: list[Tensor]) -> None:
    """By timestep and by sequence, with the masks of one given to the other."""
    if noise_to == "weights" and RNNS[cell].mask is None:
        pytest.skip("has no recurrent weights")
    options = {"noise": NOISES["additive"], "noise_to": noise_to}
    rnn, stepped = (
        make(cell, 2, **options).eval(),
        make(cell, 2, sites="timestep", **options).eval(),
    )
    stepped.load_state_dict(rnn.state_dict())
    x = torch.randn(T, B, D, dtype=torch.float64)
    trace = poutine.trace(rnn).get_trace(x, sample=True)
    data = {
        f"z_{layer}_{t}": trace.nodes[f"z_{layer}"]["value"][t : t + 1].detach()
        for layer in range(2)
        for t in range(T)
    }
    again = poutine.condition(stepped, data)(x, sample=True)
    for ours, theirs in zip(flat(again), flat(trace.nodes["_RETURN"]["value"])):
        torch.testing.assert_close(ours, theirs)
    assert not masks


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_relu"])
def test_share_of_units_that_keep_their_value(cell: str) -> None:
    """60,000 units; |z| < 5.5, so a false alarm in 4e-8 of runs."""
    rnn = build_rnn(cell, D, 100, 1, zoneout=RATES.get(cell, 0.4), dtype=torch.float64)
    state = tuple(torch.rand(1, 600, 100, dtype=torch.float64) for _ in rnn.zoneout)
    _, final = rnn(
        torch.randn(1, 600, D, dtype=torch.float64), state if cell == "lstm" else state[0]
    )
    for rate, old, new in zip(rnn.zoneout, state, flat(final)):
        share = (old == new).double().mean().item()
        assert abs(share - rate) < 5.5 * math.sqrt(rate * (1 - rate) / old.numel())


@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU, NoisyRNN, NoisyMinGRU, NoisyRGLRU])
def test_a_rate_of_zero_is_the_plain_cell(kind: Any) -> None:
    plain = kind(D, H, 2, dtype=torch.float64)
    zoned = kind(D, H, 2, dtype=torch.float64, zoneout=0)
    zoned.load_state_dict(plain.state_dict())
    x = torch.randn(T, B, D, dtype=torch.float64)
    assert torch.equal(zoned(x)[0], plain(x)[0])


def test_padding_and_both_directions() -> None:
    """A sequence in a padded batch is the sequence alone."""
    rnn = NoisyLSTM(D, H, 2, bidirectional=True, zoneout=(0.2, 0.5), dtype=torch.float64).eval()
    x, lengths = torch.randn(T, B, D, dtype=torch.float64), torch.tensor([5, 2, 4])
    output, (h, c) = rnn(x, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, (h_1, c_1) = rnn(x[:length, row])
        torch.testing.assert_close(output[:length, row], alone)
        torch.testing.assert_close(torch.stack([h[:, row], c[:, row]]), torch.stack([h_1, c_1]))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_any_cell(cell: Any) -> None:
    """NoisyRecurrent around torch's cell is NoisyLSTM or NoisyGRU, also in training."""
    inner = cell(D, H, dtype=torch.float64)
    rates = (0.3, 0.6) if cell is nn.LSTMCell else (0.4,)
    rnn = NoisyRecurrent(inner, zoneout=rates)
    known: Any = {nn.LSTMCell: NoisyLSTM, nn.GRUCell: NoisyGRU}[cell]
    other = known(D, H, zoneout=rates, dtype=torch.float64)
    other.load_state_dict({f"{name}_l0": value for name, value in inner.state_dict().items()})
    x = torch.randn(T, B, D, dtype=torch.float64)
    outputs = []
    for module in (rnn, other):
        torch.manual_seed(0)
        outputs.append(module(x)[0])
    torch.testing.assert_close(*outputs)


def test_around_a_torch_module_and_back() -> None:
    lstm = nn.LSTM(D, H)
    rnn = from_torch(lstm, zoneout=0.1)
    assert rnn.zoneout == (0.1, 0.1) and rnn.weight_hh_l0 is lstm.weight_hh_l0
    assert repr(rnn) == "NoisyLSTM(3, 4, zoneout=(0.1, 0.1))"
    assert copy.deepcopy(rnn).zoneout == (0.1, 0.1)
    with pytest.raises(
        ValueError, match=r"torch has no RNN with zoneout, .*got zoneout=\(0.1, 0.1"
    ):
        to_torch(rnn)


@pytest.mark.parametrize(
    ("kind", "zoneout", "sentence"),
    [
        (
            NoisyLSTM,
            1.0,
            r"zoneout must be a probability in \[0, 1\), or a pair for h and c, got 1.0",
        ),
        (NoisyLSTM, (0.1,), r"or a pair for h and c, got \(0.1,\)"),
        (NoisyGRU, (0.1, 0.2), r"zoneout must be a probability in \[0, 1\), got \(0.1, 0.2\)"),
        (NoisyMinGRU, -0.1, "got -0.1"),
        (NoisyGRU, "half", "zoneout must be a probability.*got half"),
        (NoisyGRU, None, "zoneout must be a probability.*got None"),
    ],
)
def test_refusals(kind: Any, zoneout: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(D, H, zoneout=zoneout)


def test_a_guide_by_timestep_says_that_its_masks_would_differ() -> None:
    rnn = NoisyGRU(D, H, noise=NOISES["additive"], sites="timestep", zoneout=0.1)
    model = LanguageModel(7, rnn)
    with pytest.raises(ValueError, match="zoneout=0.1 would draw another mask in the guide"):
        PriorGuide(model)(torch.zeros(T, B, dtype=torch.long))
