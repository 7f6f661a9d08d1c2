"""Names inside a Pyro program: several RNNs, one called twice, a second model of the same names."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.contrib.autoname import scope
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
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


def test_a_draw_serves_several_calls() -> None:
    """An antithetic pair, the windows of one draw, and a second pair of draw and call."""
    rnn, x = NoisyLSTM(D, H, noise=NOISE, spread=0.3), torch.randn(T, B, D)
    outputs: list[Tensor] = []

    def pair() -> None:
        (epsilon,) = rnn.draw_noise(T, B)
        outputs.extend(rnn(x, epsilon=[sign * epsilon])[0] for sign in (1, -1))

    def windows() -> None:
        (epsilon,) = rnn.draw_noise(T, B)
        state = None
        for part in (slice(2), slice(2, T)):
            _, state = rnn(x[part], state, epsilon=[epsilon[part]])

    def twice() -> None:
        for _ in range(2):
            rnn(x, epsilon=rnn.draw_noise(T, B))

    one = ["noise_0", "z_0", "state"]
    two = [*one, "z_0__1", "state__1"]
    for program, names in (
        (pair, two),
        (windows, two),
        (twice, [*one, "noise_0__1", "z_0__1", "state__1"]),
        (lambda: rnn(x, epsilon=rnn.draw_noise(T, B)), one),
    ):
        trace: Any = poutine.trace(program).get_trace()
        assert [name for name in trace.nodes if name.startswith(("noise", "z", "state"))] == names
        frames = trace.nodes["z_0"]["cond_indep_stack"]
        assert [(frame.name, frame.dim) for frame in frames] == [("time", -2), ("batch", -1)]
        assert trace.log_prob_sum().isfinite()
    with torch.no_grad():
        plain = rnn(x, sample=False)[0]
    first = (outputs[0] - plain)[0], (outputs[1] - plain)[0]  # the first step is symmetric
    torch.testing.assert_close(first[0], -first[1])


def test_a_value_of_a_later_call_is_given_under_a_trace_alone() -> None:
    """Which counts the calls; without one all would take the value of the first."""
    rnn = NoisyGRU(D, D, noise=NOISE, spread=0.4)

    def twice(x: Tensor) -> Tensor:
        return rnn(rnn(x)[0])[0]

    x = torch.randn(T, B, D)
    trace = poutine.trace(twice).get_trace(x)
    values = {name: trace.nodes[name]["value"] for name in ("noise_0", "noise_0__1")}
    programs = [poutine.replay(twice, trace=trace)]
    programs += [handler(twice, data=values) for handler in (poutine.condition, poutine.do)]
    for program in programs:
        again = poutine.trace(program).get_trace(x)
        assert torch.equal(again.nodes["_RETURN"]["value"], trace.nodes["_RETURN"]["value"])
        with pytest.raises(ValueError, match="'noise_0__1' is given to a program that no trace"):
            program(x)
    once = poutine.condition(rnn, data={"noise_0": values["noise_0"]})
    assert torch.equal(once(x)[0], once(x)[0])


@pytest.mark.parametrize("which", ["one called twice", "two without a name"])
def test_a_guide_draws_the_noise_of_each_call(which: str) -> None:
    """By ``draw_noise``, in a guide that runs before the model has named anything."""
    one = NoisyGRU(D, D, noise=NOISE, spread=0.4)
    two = one if which == "one called twice" else NoisyGRU(D, D, noise=NOISE, spread=0.4)

    def program(x: Tensor) -> None:
        z, _ = two(one(x)[0])
        with pyro.plate("sequences", B):
            pyro.sample("y", dist.Normal(z.mean((0, 2)), 1.0), obs=torch.zeros(B))

    def guide(x: Tensor) -> None:
        one.draw_noise(T, B)
        two.draw_noise(T, B)

    losses, x = [], torch.randn(T, B, D)
    for elbo in (Trace_ELBO(), RenyiELBO(alpha=0.0, num_particles=1)):
        pyro.set_rng_seed(3)
        losses.append(SVI(program, guide, pyro.optim.SGD({"lr": 0.0}), elbo).step(x))
    pyro.set_rng_seed(3)
    model = poutine.trace(poutine.replay(program, poutine.trace(guide).get_trace(x))).get_trace(x)
    model.compute_log_prob()
    likelihood = model.nodes["y"]["log_prob_sum"].item()
    assert losses == pytest.approx([-likelihood, -likelihood], rel=1e-5)  # the KL is empty


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
