"""A noisy RNN in the place of torch's: same call, same numbers, same files.

Where no noise is drawn the claim is equality bit for bit, so the comparison is
``torch.equal``: an output that differed in the last digit would have come from other kernels.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    from_torch,
)
from tests.helpers import flat, probed, random_state

D, H, T, B = 3, 5, 6, 4
ADDITIVE = Additive(dist.Normal(0.0, 1.0))
MULTIPLICATIVE = Multiplicative(dist.Gamma(2.0, 1.0))
GAMMA = MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / ((m + 0.1) * s**2)))

CELLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tanh": (nn.RNN, NoisyRNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, NoisyRNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, NoisyLSTM, {}),
    "gru": (nn.GRU, NoisyGRU, {}),
}
cells = pytest.mark.parametrize("cell", CELLS)


def twins(cell: str, layers: int = 1, noise: Any = None, spread: Any = 0.5, **options: Any) -> Any:
    """torch's module, and the noisy one with its weights."""
    plain_type, noisy_type, extra = CELLS[cell]
    plain = plain_type(D, H, layers, **extra, **options)
    noisy = noisy_type(D, H, layers, **extra, **options, noise=noise, spread=spread)
    noisy.load_state_dict(plain.state_dict())
    return plain, noisy


def run(rnn: nn.Module, x: Any, state: Any, **options: Any) -> list[Tensor]:
    """Output, final state, and the gradients of a function that reads each of their elements."""
    leaves = [*rnn.parameters(), *flat(state), x]
    leaves = [leaf for leaf in leaves if getattr(leaf, "requires_grad", False)]
    output, final = rnn(x, state, **options)
    output = output if isinstance(output, Tensor) else output.data
    results = [output, *flat(final)]
    grads = torch.autograd.grad(probed(results), leaves, allow_unused=True)
    return results + [g for g in grads if g is not None]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        assert mine.dtype == reference.dtype and torch.equal(mine, reference)


# -- the mean path is torch's, bit for bit ---------------------------------------------------


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


# -- when noise is drawn ---------------------------------------------------------------------


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


# -- parameters and files --------------------------------------------------------------------


@cells
def test_from_torch_shares_parameters(cell: str) -> None:
    plain = CELLS[cell][0](D, H, 2, batch_first=True, dropout=0.1, **CELLS[cell][2]).eval()
    before = torch.get_rng_state()
    noisy = from_torch(plain, noise=ADDITIVE, spread=Learned(0.3))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(noisy) is CELLS[cell][1] and noisy.batch_first and noisy.dropout == 0.1
    assert not noisy.training
    for name, parameter in plain.named_parameters():
        assert getattr(noisy, name) is parameter
    built = twins(cell, 2, ADDITIVE, Learned(0.3))[1]  # an optimiser's state goes by the order
    assert [n for n, _ in noisy.named_parameters()] == [n for n, _ in built.named_parameters()]
    x = torch.randn(B, T, D)
    assert_same(run(noisy, x, None)[:2], run(plain, x, None)[:2])
    with torch.no_grad():
        noisy.weight_hh_l0.mul_(2)
    assert torch.equal(noisy(x)[0], plain(x)[0])
    with pytest.raises(TypeError, match="from_torch wraps torch.nn.RNN, LSTM or GRU, got Linear"):
        from_torch(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_from_torch_knows_our_own_nonlinearities_and_noises() -> None:
    own = NoisyRNN(D, H, 1, "sigmoid", noise=ADDITIVE, spread=Learned(0.4))
    other = from_torch(own, noise=MULTIPLICATIVE, spread=0.2)
    assert other.nonlinearity == "sigmoid"
    assert "spread_l0_unconstrained" not in dict(other.named_parameters())


@cells
@pytest.mark.parametrize("spread", [0.7, Learned(0.7), Learned(0.7, per="unit")], ids=str)
def test_state_dicts(cell: str, spread: Any) -> None:
    plain, noisy = twins(cell, 2, ADDITIVE, spread)  # which loads torch's state_dict, strictly
    noisy.load_state_dict(copy.deepcopy(plain.state_dict()), assign=True)
    assert all(float(gamma.detach().mean()) == pytest.approx(0.7) for gamma in noisy.spread)
    learned = isinstance(spread, Learned)
    keys = set(noisy.state_dict()) - set(plain.state_dict())
    ending = "_unconstrained" if learned else ""
    assert keys == {f"spread_l{i}{ending}" for i in range(2)}
    plain.load_state_dict(noisy.state_dict(), strict=False)
    if learned:
        with torch.no_grad():
            noisy.spread_l1_unconstrained.add_(0.3)
    for assign in (False, True):
        other = twins(cell, 2, ADDITIVE, Learned(0.9, per=spread.per) if learned else spread)[1]
        other.load_state_dict(copy.deepcopy(noisy.state_dict()), assign=assign)
        assert_same(list(other.spread), list(noisy.spread))
    incomplete = {k: v for k, v in plain.state_dict().items() if k != "weight_hh_l1"}
    with pytest.raises(RuntimeError, match='Missing key.*"weight_hh_l1"'):
        noisy.load_state_dict(incomplete)
    with pytest.raises(RuntimeError, match='Unexpected key.*"weight_hh_l9"'):
        noisy.load_state_dict({**plain.state_dict(), "weight_hh_l9": torch.zeros(1)})


def copies(model: nn.Module, tmp_path: Any) -> dict[str, Any]:
    safetensors = pytest.importorskip("safetensors.torch")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    loaded = copy.deepcopy(model)
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    safetensors.load_model(loaded, str(tmp_path / "model.safetensors"))
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
        "safetensors": loaded,
    }


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after SVI"])
def test_copies_are_equal_and_independent(tmp_path: Any, used: bool) -> None:
    rnn = NoisyLSTM(D, D, 2, noise=[ADDITIVE, MULTIPLICATIVE], spread=[Learned(0.4), 0.3])
    model = LanguageModel(7, rnn, tied_weights=True, input_noise=ADDITIVE, input_spread=0.2)
    x = torch.randint(7, (T, B))
    if used:
        svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.1}), NoisinELBO())
        svi.step(x, x)

    def loss(one: Any) -> Tensor:
        pyro.clear_param_store()  # where a copy, being of the same name, would look first
        torch.manual_seed(1)
        return NoisinELBO()(one, PriorGuide(one))(x, x)

    reference, weight = loss(model), model.rnn.weight_hh_l0.detach().clone()
    for name, other in copies(model, tmp_path).items():
        assert torch.equal(loss(other), reference), name
        assert other.emission.weight is other.embedding.weight, name
        with torch.no_grad():
            other.rnn.weight_hh_l0.zero_()
        assert torch.equal(model.rnn.weight_hh_l0, weight), name


@cells
@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_double_and_to(cell: str, noise: Any) -> None:
    for spread in (0.7, Learned(0.7)):
        rnn = twins(cell, 1, noise, spread)[1].double()
        assert {p.dtype for p in rnn.parameters()} == {torch.float64}
        output = rnn(torch.randn(T, B, D, dtype=torch.float64))[0]
        assert output.dtype == rnn.spread[0].dtype == torch.float64
        assert rnn.to(torch.float32)(torch.randn(T, B, D))[0].dtype == torch.float32
    assert float(twins(cell, 1, noise, 0.7)[1].double().spread[0]) == 0.7  # not float32's 0.7


def test_meta_device() -> None:
    rnn = NoisyGRU(D, H, noise=ADDITIVE, spread=0.7, device="meta").to_empty(device="cpu")
    rnn.load_state_dict(nn.GRU(D, H).state_dict())
    assert float(rnn.spread[0]) == pytest.approx(0.7)
    assert rnn(torch.randn(T, B, D))[0].isfinite().all()


def test_it_is_torchs_module_by_type_and_by_name() -> None:
    rnn = NoisyLSTM(D, H, 2, noise=[ADDITIVE, None], spread=[Learned(0.4), 0.3])
    assert isinstance(rnn, nn.LSTM) and isinstance(rnn, nn.RNNBase)
    assert isinstance(NoisyRNN(D, H), nn.RNN) and isinstance(NoisyGRU(D, H), nn.GRU)
    text = repr(rnn)
    assert text.startswith("NoisyLSTM(3, 5, num_layers=2, noise=[Additive(base=Normal(")
    assert text.endswith("spread=[0.4 (learned), None])")
    assert repr(NoisyGRU(D, H)) == "NoisyGRU(3, 5)"
    prior = NoisyGRU(D, H, noise=ADDITIVE, spread=dist.LogNormal(0.0, 1.0))
    before = torch.get_rng_state()
    assert "spread=LogNormal(" in repr(prior) and torch.equal(torch.get_rng_state(), before)


# -- torch's tools ---------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
def test_functional_call(cell: str, noise: Any) -> None:
    rnn, x = twins(cell, 2, noise, Learned(0.4), dtype=torch.float64)[1], torch.randn(T, B, D)
    x = x.double()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(1)
        return torch.func.functional_call(rnn, parameters, (x,))[0].square().sum()

    own = {name: parameter.detach().clone() for name, parameter in rnn.named_parameters()}
    other = {name: torch.randn_like(parameter) for name, parameter in own.items()}
    torch.manual_seed(1)
    rnn(x)[0].square().sum().backward()
    for name, gradient in torch.func.grad(loss)(own).items():
        torch.testing.assert_close(gradient, rnn.get_parameter(name).grad, rtol=1e-12, atol=1e-12)
    expected = loss(other)
    rnn.load_state_dict(other)
    torch.testing.assert_close(loss(own | other), expected, rtol=0, atol=0)
    torch.manual_seed(1)
    torch.testing.assert_close(rnn(x)[0].square().sum(), expected, rtol=1e-12, atol=0)


@cells
@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["additive", "multiplicative"])
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_autocast(cell: str, noise: Any, sites: str) -> None:
    _, kind, extra = CELLS[cell]
    x, rnn = torch.randn(T, B, D), kind(D, H, 2, **extra, noise=noise, sites=sites)
    outputs = []
    for enabled in (False, True):
        torch.manual_seed(1)
        rnn.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = rnn(x)[0]
        output.float().sum().backward()
        outputs.append((output.float(), rnn.weight_hh_l0.grad.clone()))
    for exact, rough in zip(*outputs):
        torch.testing.assert_close(
            rough, exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max())
        )


UNDER_AUTOCAST = """
import pyro.distributions as dist, torch
from noisin_pyro import Additive, NoisyLSTM

before = torch.get_rng_state()
rnn = NoisyLSTM(4, 3, 2, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.5)
state, x = torch.get_rng_state(), torch.randn(6, 5, 4)
outputs = []
for enabled in (False, True):
    torch.set_rng_state(state)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        outputs += [rnn(x)[0].float(), rnn(x, sample=False)[0].float()]
    outputs[-2].sum().backward()
for exact, rough in zip(outputs[:2], outputs[2:]):
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)
"""


def test_autocast_where_torchs_lstm_has_no_halves() -> None:
    """As on a CPU without AVX-512, where ``torch.nn.LSTM`` fails under autocast."""
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", UNDER_AUTOCAST], env=older, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# -- a plain PyTorch loop leaves Pyro alone --------------------------------------------------


def test_a_plain_loop_leaves_the_param_store_empty() -> None:
    store = pyro.get_param_store()
    one, two = (NoisyLSTM(D, H, noise=ADDITIVE, spread=Learned(s)) for s in (0.4, 0.9))
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(T, B, D)
        (one(x)[0].square().sum() - two(x)[0].sum()).backward()
        optimizer.step()
        assert not list(store)
    assert not torch.equal(one.spread[0], two.spread[0])
    model = LanguageModel(7, one, input_noise=ADDITIVE, input_spread=Learned(0.4))
    x = torch.randint(7, (T, B))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(x, x, lengths=torch.tensor([6, 1, 2, 3]))[0], x)
        model(x)
    model.predict(x)
    PriorGuide(model)(x)
    model.rnn.draw_noise(T, B)
    NoisinELBO()(model, PriorGuide(model))(x, x).backward()
    assert not list(store)


def test_two_models_of_one_name_train_apart() -> None:
    """Side by side as modules, and as SVI after another was used in a plain loop."""
    x = torch.randint(7, (T, B))
    models = [
        LanguageModel(7, NoisyGRU(D, H, noise=ADDITIVE, spread=Learned(s))) for s in (0.4, 0.9)
    ]
    for model in models:
        objective = NoisinELBO()(model, PriorGuide(model))
        optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
        objective(x, x).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    first, second = (float(model.rnn.spread[0].detach()) for model in models)
    assert first == pytest.approx(0.4, abs=0.05) and second == pytest.approx(0.9, abs=0.05)
    before = [parameter.detach().clone() for parameter in models[0].parameters()]
    SVI(models[1], PriorGuide(models[1]), pyro.optim.SGD({"lr": 0.1}), NoisinELBO()).step(x, x)
    assert float(models[1].rnn.spread[0].detach()) != second
    for parameter, old in zip(models[0].parameters(), before):
        assert torch.equal(parameter, old)


def test_a_plain_backward_pass_cannot_lose_a_gradient() -> None:
    rnn = NoisyRNN(D, H, nonlinearity="relu", noise=MeanParameterized(lambda m, s: dist.Poisson(m)))
    with pytest.raises(ValueError, match="no pathwise gradient.*NoisinELBO or SVI.*no_grad"):
        rnn(torch.randn(T, B, D))
    with torch.no_grad():
        assert torch.equal(rnn(torch.randn(T, B, D))[0] % 1, torch.zeros(T, B, H))
    assert rnn(torch.randn(T, B, D), sample=False)[0].requires_grad
