"""A noisy RNN's parameters: shared with torch's modules, saved, copied, and moved."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from noisin_pyro import (
    LanguageModel,
    Learned,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    from_torch,
    weight_priors,
)
from tests.nn.twins import (
    ADDITIVE,
    CELLS,
    MULTIPLICATIVE,
    B,
    D,
    H,
    T,
    assert_same,
    cells,
    run,
    twins,
)


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
    endings = ("_unconstrained", "_floor") if learned else ("",)
    assert keys == {f"spread_l{i}{ending}" for i in range(2) for ending in endings}
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


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_a_learned_spread_keeps_its_value_under_another_floor(per: Any) -> None:
    saved, other, above = (
        NoisyGRU(D, H, 2, noise=ADDITIVE, spread=Learned(0.5, floor, per))
        for floor in (0.1, 0.02, 0.4)
    )
    with torch.no_grad():
        saved.spread_l1_unconstrained.sub_(0.7)  # γ = 0.3
    buffer = io.BytesIO()
    torch.save(saved.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(list(other.spread), list(saved.spread))
    with pytest.raises(RuntimeError, match=r"spread_l1 was learned above 0.1 and ended at 0.298"):
        above.load_state_dict(saved.state_dict())
    older = {k: v for k, v in saved.state_dict().items() if not k.endswith("_floor")}
    saved.load_state_dict(older)  # a state dict without floors is one of equal floors


@pytest.mark.parametrize("spread", [0.5, Learned(0.5), Learned(0.5, 0.2, "unit")])
@pytest.mark.filterwarnings("ignore")
def test_the_state_dicts_of_distributed_checkpoints(spread: Any) -> None:
    """torch reads each entry of a state dict as an attribute, also the floor of a learned γ."""
    saved = LanguageModel(9, NoisyGRU(D, H, noise=ADDITIVE, spread=spread), input_noise=ADDITIVE)
    loaded = copy.deepcopy(saved)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.sub_(0.1)
    set_model_state_dict(loaded, get_model_state_dict(saved))
    assert_same(list(loaded.state_dict().values()), list(saved.state_dict().values()))
    with pytest.raises(AttributeError, match="spread_l9_floor"):
        saved.rnn.spread_l9_floor  # noqa: B018


@pytest.mark.parametrize("spread", [0.3, torch.tensor(0.3), Learned(0.3)], ids=str)
def test_state_dicts_hold_parameters_and_buffers_alone(spread: Any) -> None:
    """Accelerate, transformers, and torch for a DistributedDataParallel, load nothing else."""
    rnn = NoisyGRU(D, H, noise=ADDITIVE, spread=spread)
    model = LanguageModel(9, rnn, input_noise=ADDITIVE, input_spread=spread)
    weight_priors(model, Learned(0.3, 0.01), names=["emission.weight"])
    known = dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    assert model.state_dict().keys() == known
    rnn.spread = 0.4
    assert [name for name, _ in rnn.named_buffers()] == ["spread_l0"]


def test_a_number_is_exact_in_every_dtype_until_another_is_loaded() -> None:
    rnn = NoisyGRU(D, H, noise=ADDITIVE, spread=0.7)
    assert float(rnn.half().double().spread[0]) == 0.7
    rnn.spread_l0.fill_(0.3)  # as programs do that load buffers by name
    assert float(rnn.float().double().spread[0]) == pytest.approx(0.3)
    rnn.reset_parameters()
    assert float(rnn.spread[0]) == 0.7


def test_programs_that_load_each_entry_by_name() -> None:
    """As transformers does, which made each a parameter before its version 5."""
    rnn = NoisyGRU(D, H, noise=ADDITIVE, spread=Learned(0.5, 0.1))
    rnn.spread_l0_floor = nn.Parameter(rnn.state_dict()["spread_l0_floor"])
    assert "spread_l0_floor" not in dict(rnn.named_parameters())
    rnn.spread_l0_floor = torch.tensor(0.1, dtype=torch.bfloat16)
    with pytest.raises(AttributeError, match=r"spread_l0_floor is 0.1 here.*lower=0.2\)"):
        rnn.spread_l0_floor = torch.tensor(0.2)


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
def test_an_rnn_is_pickled_by_itself_after_pyro_has_run_it(cell: str) -> None:
    rnn = twins(cell, 2, ADDITIVE, Learned(0.4))[1]
    x = torch.randn(T, B, D)
    pyro.poutine.trace(rnn).get_trace(x)  # which leaves weak references in its parameters
    other = pickle.loads(pickle.dumps(rnn))
    assert torch.equal(other(x, sample=False)[0], rnn(x, sample=False)[0])


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
    learned = NoisyGRU(D, H, noise=ADDITIVE, spread=Learned(0.7)).to("meta")
    assert "spread=meta (learned)" in repr(learned)


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
