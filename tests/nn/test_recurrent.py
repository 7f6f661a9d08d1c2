"""NoisyRecurrent with torch's own cells is NoisyLSTM and its siblings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from noisin_pyro import LanguageModel, NoisinELBO, NoisyRecurrent, PriorGuide
from tests.helpers import assert_all_close, flat, make_rnn, probed, random_state
from tests.nn.noisy_cells import LENGTHS, NOISES, B, D, H, T

KINDS: dict[str, Callable[..., nn.Module]] = {
    "tanh": nn.RNNCell,
    "relu": partial(nn.RNNCell, nonlinearity="relu"),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}
kinds = pytest.mark.parametrize("kind", KINDS)
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def twins(kind: str, layers: int = 2, bidirectional: bool = False, **options: Any) -> Any:
    """A noisy RNN of this library, and a NoisyRecurrent whose cells share its weights."""
    noisy = make_rnn(kind, D, H, layers, bidirectional=bidirectional, **options).double()
    ways = ("", "_reverse") if bidirectional else ("",)
    tracks = []
    for layer in range(layers):
        cells = [KINDS[kind](D if layer == 0 else len(ways) * H, H).double() for _ in ways]
        for cell, way in zip(cells, ways):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(cell, name, getattr(noisy, f"{name}_l{layer}{way}"))
        tracks.append(cells)
    nested: Any = tracks if bidirectional else [cell for (cell,) in tracks]
    return noisy, NoisyRecurrent(nested, **options)


def weights(rnn: Any) -> list[Tensor]:
    return [part for name, part in rnn.named_parameters() if "_hh_" in name or "_ih_" in name]


@kinds
@noises
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_torch_cells_give_the_noisy_rnn(kind: str, noise: Any, noise_to: str, lengths: Any) -> None:
    """Outputs, final states and gradients, with sites per sequence and per timestep."""
    for sites in ("sequence", "timestep", None):
        ours, theirs = twins(kind, noise=noise, spread=[0.3, 0.6], noise_to=noise_to, sites=sites)
        assert_same(ours, theirs, kind, lengths)


@kinds
@noises
def test_both_directions(kind: str, noise: Any) -> None:
    for sites, lengths in (("sequence", LENGTHS), ("timestep", LENGTHS), ("sequence", None)):
        options = {"noise": noise, "spread": 0.4, "sites": sites}
        ours, theirs = twins(kind, bidirectional=True, **options)
        assert_same(ours, theirs, kind, lengths, 4)


@kinds
def test_tied_noise_and_dropout(kind: str) -> None:
    noise = NOISES["multiplicative"]
    ours, theirs = twins(kind, noise=noise, tied=True, dropout=0.3)
    assert_same(ours, theirs, kind, LENGTHS)


def assert_same(ours: Any, theirs: Any, kind: str, lengths: Any, tracks: int = 2) -> None:
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    state = random_state(kind, tracks, B, H, dtype=torch.float64)
    found = []
    for rnn in (ours, theirs):
        for mode in (True, False):
            pyro.set_rng_seed(1)
            outputs = flat(rnn.train(mode)(x, state, lengths=lengths))
            leaves = [x, *flat(state), *weights(ours)]
            found.append([*outputs, *torch.autograd.grad(probed(outputs), leaves)])
    assert all(bool(part.any()) for part in found[0])
    for reference, same in zip(found[:2], found[2:]):
        assert_all_close(same, reference)


@kinds
def test_other_forms_of_input(kind: str) -> None:
    """Packed, batch_first, unbatched; and a zero state if none is given."""
    options: Any = {"noise": NOISES["additive"], "spread": 0.5}
    x = torch.randn(T, B, D, dtype=torch.float64)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    for given, batch_first in ((packed, False), (x, True), (x[:, 0], True), (x, False)):
        found: list[Any] = []
        for rnn in twins(kind, batch_first=batch_first, **options):
            pyro.set_rng_seed(1)
            output, state = rnn(given)
            found.append([output.data, *flat(state)])
        assert_all_close(found[0], found[1])


@kinds
@pytest.mark.parametrize("noise", ["additive", "multiplicative", "mean"])
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_the_same_program(kind: str, noise: str, sites: str) -> None:
    """Sites, log joint, the objectives of both forms, and a step of SVI."""
    losses, traces = [], []
    x, y = torch.randint(7, (2, T, B))
    for rnn in twins(kind, noise=NOISES[noise], spread=0.4, sites=sites):
        torch.manual_seed(2)
        model = LanguageModel(7, rnn, input_noise=NOISES["multiplicative"]).double()
        guide = PriorGuide(model)
        pyro.clear_param_store()
        found = []
        for elbo in (NoisinELBO(), NoisinELBO(2, vectorize_particles=True), Trace_ELBO()):
            pyro.set_rng_seed(3)
            loss = elbo(model, guide)(x, y, lengths=LENGTHS)
            found += [loss, *torch.autograd.grad(loss, weights(model) or weights_of_cells(model))]
        pyro.set_rng_seed(3)
        trace = poutine.trace(model).get_trace(x, y, lengths=LENGTHS)
        traces.append([name for name in trace.stochastic_nodes if "$$$" not in name])
        pyro.clear_param_store()
        model = copy.deepcopy(model)  # the weights are shared, and a step changes them
        svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.01}), NoisinELBO())
        pyro.set_rng_seed(4)
        losses.append([*found, trace.log_prob_sum(), *(torch.tensor(svi.step(x, y)) for _ in "12")])
    assert traces[0] == traces[1]
    assert_all_close(losses[0], losses[1])


def weights_of_cells(model: Any) -> list[Tensor]:
    return [part for name, part in model.named_parameters() if "cell_l" in name]


def test_evaluation() -> None:
    from noisin_pyro.text.evaluation import evaluate

    tokens = torch.randint(7, (200,))
    found = []
    for rnn in twins("lstm", noise=NOISES["additive"]):
        torch.manual_seed(2)
        model = LanguageModel(7, rnn).double()
        torch.manual_seed(3)
        found.append([evaluate(model, tokens, samples=samples).nats for samples in (0, 2)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)
