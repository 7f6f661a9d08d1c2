"""The way back: plain torch modules, what converts them, and whole saved models."""

from __future__ import annotations

import io
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from noisin_pyro import (
    Additive,
    Learned,
    NoisyGRU,
    NoisyLSTM,
    NoisyMinGRU,
    NoisyRNN,
    from_torch,
    to_torch,
)
from tests.helpers import flat

NOISE = Additive(dist.Normal(0.0, 1.0))
T, B, D, H = 6, 4, 3, 5


@pytest.mark.parametrize("kind", [NoisyRNN, NoisyLSTM, NoisyGRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_shares_parameters_and_runs_the_mean_path(kind: Any, bidirectional: bool) -> None:
    noisy = kind(D, H, 2, bias=False, bidirectional=bidirectional, noise=NOISE).eval()
    plain, x = to_torch(noisy), torch.randn(T, B, D)
    assert type(plain) in (nn.RNN, nn.LSTM, nn.GRU) and not plain.training
    assert {id(p) for p in plain.parameters()} == {id(p) for p in noisy.parameters()}
    for ours, theirs in zip(flat(noisy(x)), flat(plain(x))):
        assert torch.equal(ours, theirs)


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match="takes a NoisyRNN, NoisyLSTM or NoisyGRU.*got LSTM"):
        to_torch(nn.LSTM(D, H))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got NoisyMinGRU"):
        to_torch(NoisyMinGRU(D, H))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no RNN with nonlinearity 'sigmoid'"):
        to_torch(NoisyRNN(D, H, nonlinearity="sigmoid"))
    gru: Any = NoisyGRU(D, H, noise=NOISE)
    gru.weight_hh_l0 = PyroSample(dist.Normal(0.0, 1.0).expand([3 * H, H]).to_event(2))
    with pytest.raises(ValueError, match="weight_hh_l0 is random or computed from others"):
        to_torch(gru)


@pytest.mark.parametrize(("kind", "convert"), [(nn.LSTM, from_torch), (NoisyGRU, to_torch)])
def test_a_forward_of_a_subclass_is_not_lost(kind: Any, convert: Any) -> None:
    class Scaled(kind):
        def forward(self, *args: Any) -> Any:
            output, state = super().forward(*args)
            return 2 * output, state

    class Renamed(kind):
        pass

    with pytest.raises(TypeError, match="Scaled has a forward of its own, which would be lost"):
        convert(Scaled(D, H))
    assert convert(Renamed(D, H)).hidden_size == H
    with_priors: Any = PyroModule[kind]
    assert convert(with_priors(D, H)).hidden_size == H


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation() -> None:
    noisy, x = NoisyLSTM(D, H, 2, noise=NOISE).eval(), torch.randn(T, B, D)
    network = nn.Sequential(to_torch(noisy))
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.LSTM}, torch.qint8)
    torch.testing.assert_close(quantised(x)[0], noisy(x)[0], atol=0.02, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU])
def test_onnx_with_a_dynamic_time_axis(kind: Any) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnx and onnxruntime")
    pytest.importorskip("onnx")
    noisy, file = kind(D, H, 2, noise=NOISE).eval(), io.BytesIO()
    torch.onnx.export(
        to_torch(noisy),
        (torch.randn(T, B, D),),
        file,  # type: ignore[arg-type]
        dynamo=False,  # torch's newer exporter fixes the length of an nn.LSTM's input
        input_names=["x"],
        output_names=["z"],
        dynamic_axes={"x": {0: "time"}, "z": {0: "time"}},
    )
    session = runtime.InferenceSession(file.getvalue())
    x = torch.randn(T + 5, B, D)
    (z,) = session.run(["z"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(z), noisy(x)[0], atol=1e-5, rtol=1e-5)


def test_a_saved_model_is_whole() -> None:
    """γ comes back with the weights, whatever kind it is; torch's modules leave it out."""
    spreads: list[Any] = [0.7, torch.full((H,), 0.4), Learned(0.6), nn.Parameter(torch.tensor(0.2))]
    saved = NoisyLSTM(D, H, 4, noise=NOISE, spread=spreads)
    saved.spread_l2_unconstrained.data.add_(0.5)
    others: list[Any] = [0.1, torch.full((H,), 0.9), Learned(0.3), nn.Parameter(torch.tensor(0.5))]
    fresh = NoisyLSTM(D, H, 4, noise=NOISE, spread=others)
    fresh.load_state_dict(saved.state_dict())
    for ours, theirs in zip(fresh.spread, saved.spread):
        assert torch.equal(ours, theirs)
    assert float(fresh.double().spread[0]) == pytest.approx(0.7, rel=1e-7)
    plain = nn.LSTM(D, H, 4)
    report = plain.load_state_dict(saved.state_dict(), strict=False)
    assert not report.missing_keys
    assert all(key.startswith("spread_l") for key in report.unexpected_keys)


def test_a_spread_of_each_unit_does_not_load_into_one_number() -> None:
    saved = NoisyLSTM(D, H, noise=NOISE, spread=torch.full((H,), 0.4)).state_dict()
    with pytest.raises(
        RuntimeError, match=r"size mismatch for spread_l0: each of \d+ units has its own γ"
    ):
        NoisyLSTM(D, H, noise=NOISE, spread=0.7).load_state_dict(saved)
