"""A noisy RNN in the place of torch's: the same call and the same numbers, and when noise is drawn.

Where no noise is drawn the claim is equality bit for bit, so the comparison is
``torch.equal``: an output that differed in the last digit would have come from other kernels."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from noisin_pyro import NoisyMinGRU, NoisyRecurrent, NoisyRNN, from_torch
from tests.helpers import flat, random_state
from tests.nn.twins import ADDITIVE, MULTIPLICATIVE, B, D, H, T, assert_same, cells, run, twins


@cells
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_noise_it_is_torchs_module(cell: str, layers: int, dtype: torch.dtype) -> None:
    noise_shows = False
    for batch_first, unbatched, given in itertools.product((False, True), repeat=3):
        shape = (T, D) if unbatched else (B, T, D) if batch_first else (T, B, D)
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        state_shape = (layers, H) if unbatched else (layers, B, H)
        state = random_state(cell, *state_shape, dtype=dtype) if given else None
        options = {"batch_first": batch_first, "bias": not given, "dtype": dtype}
        noise = ADDITIVE if given else [None] * (layers - 1) + [MULTIPLICATIVE]
        plain, noisy = twins(cell, layers, noise, **options)
        deterministic = from_torch(plain)
        reference = run(plain, x, state)
        assert_same(run(deterministic, x, state), reference)
        noise_shows |= not torch.equal(noisy(x, state)[0], reference[0])
        if batch_first:
            assert_same(run(noisy, x, state, sample=False), reference)
        else:
            assert_same(run(noisy.eval(), x, state), reference)
    assert noise_shows  # otherwise the rest would show nothing


@cells
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(cell: str, enforce_sorted: bool) -> None:
    lengths = torch.tensor([6, 4, 4, 1] if enforce_sorted else [4, 6, 1, 4])
    packed = pack_padded_sequence(torch.randn(T, B, D), lengths, enforce_sorted=enforce_sorted)
    plain, noisy = twins(cell, 2, batch_first=True)  # which torch ignores here
    state = random_state(cell, 2, B, H)
    assert_same(run(noisy, packed, state), run(plain, packed, state))
    ours, theirs = noisy(packed)[0], plain(packed)[0]
    assert torch.equal(ours.batch_sizes, theirs.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        mine, reference = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (reference is None)
        assert mine is None or torch.equal(mine, reference)


@cells
@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_packed_and_padded_sequences_agree(cell: str, noise: Any) -> None:
    lengths = torch.tensor([4, 6, 1, 4])
    x, state = torch.randn(T, B, D), random_state(cell, 2, B, H)
    noisy = twins(cell, 2, noise)[1]
    torch.manual_seed(1)
    packed, final = noisy(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
    torch.manual_seed(1)
    padded, final_padded = noisy(x, state, lengths=lengths)
    again = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    assert_same([packed.data, *flat(final)], [again.data, *flat(final_padded)])
    past = torch.arange(T).unsqueeze(1) >= lengths
    assert bool((padded[past] == 0).all()) and bool((padded[~past] != 0).any(-1).all())


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "identity"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_that_torch_lacks(nonlinearity: str, layers: int, bias: bool) -> None:
    rnn = NoisyRNN(D, H, layers, nonlinearity, bias=bias, dtype=torch.float64)  # type: ignore[arg-type]
    act = {"sigmoid": torch.sigmoid, "identity": lambda a: a}[nonlinearity]

    class Loop(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            finals = []
            for layer in range(layers):
                w_ih, w_hh = rnn.all_weights[layer][:2]
                offset = sum(rnn.all_weights[layer][2:], torch.zeros(()))
                state, outputs = h[layer], []
                for step in x:
                    state = act(step @ w_ih.T + state @ w_hh.T + offset)
                    outputs.append(state)
                x = torch.stack(outputs)
                finals.append(state)
            return x, torch.stack(finals)

        parameters = rnn.parameters

    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    h = random_state("gru", layers, B, H, dtype=torch.float64)
    for mine, reference in zip(run(rnn, x, h), run(Loop(), x, h)):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@cells
@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_sample_overrides_the_mode(cell: str, noise: Any) -> None:
    rnn, x = twins(cell, 2, noise)[1], torch.randn(T, B, D)

    def draw(**options: Any) -> Tensor:
        torch.manual_seed(1)
        return rnn(x, **options)[0]

    trained, mean = draw(), draw(sample=False)
    assert not torch.equal(trained, mean)
    rnn.eval()
    assert torch.equal(draw(), mean) and torch.equal(draw(sample=True), trained)


@cells
def test_dropout_keeps_torchs_meaning(cell: str) -> None:
    plain, deterministic = twins(cell, 3, dropout=0.4)
    x, lengths = torch.randn(T, B, D), torch.tensor([6, 3, 3, 1])
    for given in (x, pack_padded_sequence(x, lengths)):
        outputs = []
        for rnn in (plain, deterministic):
            torch.manual_seed(1)
            outputs.append(run(rnn, given, None))
        assert_same(*outputs)
    assert not torch.equal(plain(x)[0], plain(x)[0])  # dropout was on
    # between layers, not after the last, while training, whether noise is drawn or not
    noisy = twins(cell, 2, ADDITIVE, dropout=1.0)[1]

    def reads_input(**options: Any) -> bool:
        outputs = []
        for scale in (1.0, 2.0):
            torch.manual_seed(1)
            outputs.append(noisy(scale * x, **options)[0])
        return not torch.equal(*outputs)

    assert not reads_input() and not reads_input(sample=False)
    assert float(noisy(x)[0].detach().abs().min()) > 0
    noisy.eval()
    assert reads_input() and reads_input(sample=True)


def test_one_layer_may_be_without_noise() -> None:
    plain, noisy = twins("lstm", 2, [None, ADDITIVE], [0.5, 0.3])
    assert noisy.spread[0] is None and float(noisy.spread[1]) == pytest.approx(0.3)
    x = torch.randn(T, B, D)
    trace = pyro.poutine.trace(noisy).get_trace(x)
    captured = {k for k, v in trace.nodes.items() if v["type"] == "sample" and not v["is_observed"]}
    assert captured - {"time", "batch"} == {"noise_1"}
    clean = plain(x, None)[1][0][0]
    assert torch.equal(trace.nodes["_RETURN"]["value"][1][0][0], clean)


def test_a_program_that_flattens_its_parameters_runs_with_every_noisy_rnn() -> None:
    for rnn in (NoisyRNN(D, H), NoisyMinGRU(D, H), NoisyRecurrent(nn.GRUCell(D, H))):
        rnn.flatten_parameters()
        assert rnn(torch.randn(T, B, D))[0].shape == (T, B, H)
