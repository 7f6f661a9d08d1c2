"""NoisyRecurrent with a cell of one's own: states of several parts, priors, compilers, refusals."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    Learned,
    Multiplicative,
    NoisyRecurrent,
    NormalEmission,
    PriorGuide,
    SequenceModel,
)
from tests.helpers import assert_all_close, gamma_noise
from tests.nn.noisy_cells import LENGTHS, NOISES, B, D, H, T


class Memory(NamedTuple):
    h: Tensor
    trace: Tensor
    steps: Tensor


class Counting(nn.Module):
    """A state of three parts of different widths, in a NamedTuple."""

    input_size = D

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(D + H + 2, H)

    def forward(self, x: Tensor, state: Memory | None = None) -> Memory:
        if state is None:
            state = Memory(*(x.new_zeros(len(x), size) for size in (H, 2, 1)))
        h = torch.tanh(self.new(torch.cat([x, state.h, state.trace], -1)))
        return Memory(h, 0.9 * state.trace + state.h[:, :2], state.steps + 1)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
def test_a_state_of_several_parts(sites: Any, noise_to: Any) -> None:
    """z alone is noisy, and the rest is carried clean, over sequences of different lengths."""
    noise, spread = Multiplicative(dist.Normal(0.0, 1.0)), 0.5
    rnn = NoisyRecurrent(Counting(), noise=noise, spread=spread, sites=sites, noise_to=noise_to)
    x = torch.randn(T, B, D)
    torch.manual_seed(1)
    output, state = rnn(x, lengths=LENGTHS)
    assert [tuple(part.shape) for part in state] == [(1, B, H), (1, B, 2), (1, B, 1)]
    assert state[2].flatten().tolist() == LENGTHS.tolist()
    torch.manual_seed(1)
    each: Any = noise.standardized(x)
    if sites == "sequence":
        epsilon = each.expand((T, B, H)).sample()
    else:
        epsilon = torch.cat([each.expand((1, B, H)).sample() for _ in range(T)])
    cell: Any = rnn.cell_l0
    now = Memory(*(x.new_zeros(B, size) for size in (H, 2, 1)))
    for t in range(2):  # within every sequence
        h, *rest = cell(x[t], now)
        z = h * (1 + spread * epsilon[t])
        torch.testing.assert_close(output[t], h if noise_to == "recurrence" else z)
        now = Memory(h if noise_to == "output" else z, *rest)
    part, carried = rnn.eval()(x)
    first, middle = rnn(x[:3])
    second, end = rnn(x[3:], middle)
    assert_all_close([part, *carried], [torch.cat([first, second]), *end], 1e-6)


class Dropping(nn.Module):
    """Draws a mask at each step, and needs its state."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.calls = D, H, 0
        self.inner, self.dropout = nn.GRUCell(D, H), nn.Dropout(rate)

    def forward(self, x: Tensor, h: Tensor) -> list[Tensor]:
        self.calls += 1
        return [self.inner(self.dropout(x), h)]


def test_a_cell_is_called_once_per_step_and_its_random_state_is_its_own() -> None:
    cell = Dropping()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rnn = NoisyRecurrent(cell, noise=Additive(dist.Normal(0.0, 1.0)), noise_to="recurrence")
    assert torch.equal(before, torch.get_rng_state()) and cell.training
    cell.calls = 0
    output, h = rnn(torch.randn(T, B, D))
    assert cell.calls == T and output.shape == (T, B, H) and h.shape == (1, B, H)


class Random(PyroModule):
    """A cell with a prior on its weight."""

    input_size, hidden_size = D, H
    w: Any

    def __init__(self) -> None:
        super().__init__()
        self.w = PyroSample(dist.Normal(0.0, 1.0).expand([H, D]).to_event(2))
        self.u = nn.Parameter(0.3 * torch.eye(H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.w.T + h @ self.u)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_a_prior_on_a_weight_is_drawn_once_and_outside_the_plates(sites: Any) -> None:
    cell = Random()
    rnn = NoisyRecurrent(cell, noise=Additive(dist.Normal(0.0, 1.0)), sites=sites)
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(H, 1))
    x, y = torch.randn(T, B, D), torch.randn(T, B, 1)
    trace = poutine.trace(model).get_trace(x, y)
    assert trace.nodes["rnn.cell_l0.w"]["cond_indep_stack"] == ()
    assert "rnn.cell_l0.u" in trace.param_nodes
    loss = Trace_ELBO()(model, PriorGuide(model))(x, y)
    loss.backward()
    assert cell.u.grad.any()


def test_outside_pyro_the_param_store_stays_empty() -> None:
    for cell in (Random(), nn.LSTMCell(D, H)):
        rnn = NoisyRecurrent(cell, noise=Additive(dist.Normal(0.0, 1.0)), spread=Learned(0.5))
        rnn(torch.randn(T, B, D))
        assert not list(pyro.get_param_store())


@pytest.mark.parametrize("kind", [Random, partial(nn.GRUCell, D, H)])
def test_a_second_one_without_a_name_gets_one(kind: Any) -> None:
    first, second = (NoisyRecurrent(kind(), noise=NOISES["additive"]) for _ in range(2))

    def model() -> None:
        x = torch.randn(T, B, D)
        for rnn in (first, second):
            rnn(x)

    with pyro.poutine.trace() as recorded:
        model()
    names = list(recorded.trace.stochastic_nodes)
    assert {"noise_0", "noisy_recurrent_1.noise_0"} <= set(names)
    stored = pyro.get_param_store()
    assert len(list(stored)) == 2 * len(list(first.parameters()))


def test_copies_saving_and_representation() -> None:
    options: Any = {"noise": NOISES["additive"], "spread": Learned(0.5)}
    rnn = NoisyRecurrent([nn.LSTMCell(D, H), nn.LSTMCell(H, H)], **options)
    x = torch.randn(T, B, D)
    other = NoisyRecurrent([nn.LSTMCell(D, H), nn.LSTMCell(H, H)], **options)
    assert "cell_l1.weight_hh" in rnn.state_dict()
    other.load_state_dict(rnn.state_dict())
    for same in (copy.deepcopy(rnn), other):
        assert torch.equal(same.eval()(x)[0], rnn.eval()(x)[0])
    assert "Additive" in repr(rnn) and "(cell_l1): LSTMCell(4, 4)" in repr(rnn)
    before = rnn.cell_l0.weight_hh.clone()
    rnn.spread = 0.9
    rnn.reset_parameters()
    assert not torch.equal(before, rnn.cell_l0.weight_hh)
    plain = NoisyRecurrent(nn.GRUCell(D, H), noise=NOISES["additive"])
    assert torch.equal(pickle.loads(pickle.dumps(plain)).eval()(x)[0], plain.eval()(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_cell_is_run_compiled() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Plain(nn.Module):
        input_size, hidden_size = D, H

        def __init__(self) -> None:
            super().__init__()
            self.w, self.u = nn.Linear(D, H), nn.Linear(H, H)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.w(x) + self.u(h))

    cell = Plain()
    plain = NoisyRecurrent(cell, noise=Additive(dist.Normal(0.0, 1.0)))
    compiled: Any = torch.compile(cell, backend=backend)
    rnn = NoisyRecurrent(
        compiled,
        noise=Additive(dist.Normal(0.0, 1.0)),
        input_size=D,
        state_sizes=[H],
    )
    x = torch.randn(T, B, D)
    torch.manual_seed(1)
    with pyro.validation_enabled():  # torch.compile turns the validation of distributions off
        output, _ = rnn(x)
    assert graphs
    torch.manual_seed(1)
    assert torch.equal(output, plain(x)[0])


def test_the_range_is_needed_where_the_mean_is_the_state() -> None:
    class Positive(nn.GRUCell):
        def forward(self, x: Tensor, h: Any = None) -> Tensor:
            return super().forward(x, h).sigmoid()

    with pytest.raises(ValueError, match="range= was not given"):
        NoisyRecurrent(Positive(D, H), noise=gamma_noise())
    rnn = NoisyRecurrent(Positive(D, H), noise=gamma_noise(), range=(0.0, 1.0), spread=0.3)
    assert (rnn(torch.randn(T, B, D))[0] > 0).all()


@pytest.mark.parametrize(
    "cells, options, kind, message",
    [
        (nn.LSTM(D, H), {}, TypeError, "runs over a sequence"),
        ([], {}, ValueError, "at least one cell"),
        ([3], {}, TypeError, "nn.Module"),
        ([(nn.GRUCell(D, H),) * 3], {}, ValueError, "pair"),
        (nn.Linear(D, H), {}, ValueError, "input_size"),
        ([nn.GRUCell(D, H), nn.GRUCell(H, 5)], {}, ValueError, "same state"),
        ([nn.GRUCell(D, H), nn.LSTMCell(H, H)], {}, ValueError, "same state"),
        ([nn.GRUCell(D, H), nn.GRUCell(D, H)], {}, ValueError, "could not be called"),
        (nn.GRUCell(D, H), {"dropout": 2.0}, ValueError, "dropout"),
        (nn.GRUCell(D, H), {"noise": dist.Normal(0.0, 1.0)}, TypeError, "noise must be"),
        (nn.GRUCell(D, H), {"sites": "word"}, ValueError, "sites must be"),
    ],
)
def test_refusals(cells: Any, options: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        NoisyRecurrent(cells, **options)


def test_a_wrong_state_is_refused() -> None:
    rnn = NoisyRecurrent(Counting())
    x = torch.randn(T, B, D)
    with pytest.raises(TypeError, match="tuple of 3 tensors"):
        rnn(x, torch.zeros(1, B, H))
    parts = [torch.zeros(1, B, size) for size in (H, 2, 5)]
    with pytest.raises(ValueError, match="this part of the state"):
        rnn(x, tuple(parts))
