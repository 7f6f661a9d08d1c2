"""A noisy RNN in a plain PyTorch loop: torch's own tools take it, and Pyro is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from noisin_pyro import (
    LanguageModel,
    Learned,
    MeanParameterized,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
)
from tests.nn.twins import ADDITIVE, CELLS, MULTIPLICATIVE, B, D, H, T, cells, twins


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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(cell: str, noise: Any, sites: str, dtype: torch.dtype) -> None:
    """Also where oneDNN has a half-precision LSTM only for inference: float16 on some CPUs."""
    _, kind, extra = CELLS[cell]
    x, rnn = torch.randn(T, B, D), kind(D, H, 2, **extra, noise=noise, sites=sites)
    outputs = []
    for enabled in (False, True):
        torch.manual_seed(1)
        rnn.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            output = rnn(x)[0]
        output.float().sum().backward()
        outputs.append((output.float(), rnn.weight_hh_l0.grad.clone()))
    for exact, rough in zip(*outputs):
        torch.testing.assert_close(
            rough, exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max())
        )


@cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_kernels_stay_in_single_precision_under_autocast(
    cell: str, dtype: torch.dtype
) -> None:
    _, kind, extra = CELLS[cell]
    x, rnn = torch.randn(T, B, D), kind(D, H, 2, **extra)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            output = rnn(x.to(dtype) if enabled else x.to(dtype).float())[0]
        found.append([output, *torch.autograd.grad(output.square().sum(), [*rnn.parameters()])])
    for exact, ours in zip(*found):
        assert torch.equal(ours, exact)


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
