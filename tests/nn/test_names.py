"""Names inside a Pyro program: several RNNs, one called twice, a second model of the same names."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    NoisyGRU,
    NoisyLSTM,
    PriorGuide,
    SequenceModel,
)

NOISE = Additive(dist.Normal(0.0, 1.0))
T, B, D, H = 5, 3, 4, 6


def noise_sites(program: Any, *args: Any) -> list[str]:
    trace = poutine.trace(program).get_trace(*args)
    assert trace.log_prob_sum().isfinite()
    return [name for name in trace.nodes if "noise_" in name]


class Pair(nn.Module):
    """A plain module, which names nothing."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.one = NoisyLSTM(D, H, noise=NOISE, spread=Learned(0.3))
        self.two = NoisyLSTM(H, H, noise=NOISE, spread=Learned(0.6), name=name)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)[0])[0]


def test_two_nameless_rnns_in_one_program_are_told_apart() -> None:
    pair, x = Pair(), torch.randn(T, B, D)
    assert noise_sites(pair, x) == ["noise_0", "noisy_lstm_1.noise_0"]
    assert noise_sites(pair, x) == ["noise_0", "noisy_lstm_1.noise_0"]
    store = pyro.get_param_store()
    values = [store["spread_l0"], store["noisy_lstm_1.spread_l0"]]
    torch.testing.assert_close(torch.stack(values), torch.tensor([0.3, 0.6]))
    with pyro.plate("batch", 2, dim=-4):  # a user's own plate of that name
        pass
    assert noise_sites(Pair("decoder"), x)[1] == "decoder.noise_0"


def test_one_rnn_called_at_each_step_has_a_site_at_each_step() -> None:
    """As ``pyro.contrib.autoname.name_count`` counts, or in scopes of the user's own."""
    rnn = NoisyGRU(D, H, noise=NOISE, spread=0.4)

    def counted(x: Tensor) -> None:
        state = None
        for step in x.split(1):
            _, state = rnn(step, state)

    def scoped(x: Tensor) -> None:
        state = None
        for t, step in enumerate(x.split(1)):
            with scope(prefix=f"step_{t}"):
                _, state = rnn(step, state)

    x = torch.randn(3, B, D)
    assert noise_sites(counted, x) == ["noise_0", "noise_0__1", "noise_0__2"]
    assert noise_sites(scoped, x) == [f"step_{t}/noise_0" for t in range(3)]


def steps(model: SequenceModel, x: Tensor, count: int = 40) -> tuple[float, float]:
    optimizer = pyro.optim.Adam({"lr": 0.05})
    svi = SVI(model, PriorGuide(model), optimizer, Trace_ELBO())
    losses = [svi.step(x[:-1], x[1:]) for _ in range(count)]
    return losses[0], losses[-1]


def model(**options: Any) -> LanguageModel:
    return LanguageModel(9, NoisyGRU(D, H, noise=NOISE, spread=0.2), **options)


def test_a_second_model_of_the_same_names_is_told_of_once() -> None:
    x = torch.randint(9, (7, 2))
    first, last = steps(model(), x)
    assert last < 0.8 * first
    second = model()
    with pytest.warns(
        UserWarning, match="holds another tensor under 'rnn.weight_.h_l0'.*name="
    ) as w:
        first, last = steps(second, x)
    assert len(w) == 1
    assert last > 0.8 * first  # Pyro trains the first model's weights
    first, last = steps(model(name="third"), x)  # the remedy
    assert last < 0.8 * first
    assert "third.rnn.weight_ih_l0" in pyro.get_param_store()


def test_saved_weights_go_into_a_fresh_model_by_its_state_dict() -> None:
    x = torch.randint(9, (7, 2))
    trained = model()
    steps(trained, x)
    pyro.clear_param_store()
    fresh = model()
    fresh.load_state_dict(trained.state_dict())
    assert steps(fresh, x, 2)[0] < 0.8 * steps(model(name="other"), x, 2)[0]
