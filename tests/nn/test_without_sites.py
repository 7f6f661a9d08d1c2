"""Noise that is no sample site, and noise that stands in only one of model and guide."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro import Additive, LanguageModel, Learned, Multiplicative, NoisyGRU, NoisyRNN

NORMAL = dist.Normal(0.0, 1.0)
T, B, D, H = 5, 3, 4, 6


def sample_sites(trace: Any) -> set[str]:
    return {name for name, node in trace.nodes.items() if node["type"] == "sample"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_without_sites_only_parameters_reach_pyro(learned: bool, tied: bool) -> None:
    spread: Any = Learned(0.4) if learned else 0.4
    rnn = NoisyGRU(D, H, 2, noise=Additive(NORMAL), spread=spread, sites=None, tied=tied)
    x = torch.randn(T, B, D)
    torch.manual_seed(1)
    trace = poutine.trace(rnn).get_trace(x)
    assert not sample_sites(trace)
    assert ("spread_l0" in trace.nodes) == learned
    torch.manual_seed(1)
    assert torch.equal(trace.nodes["_RETURN"]["value"][0], rnn(x)[0])
    assert not torch.equal(rnn(x)[0], rnn(x)[0])


class Smoother(PyroModule):
    """A latent random walk, whose guide reads the observations with an RNN, backwards."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        linear: Any = PyroModule[nn.Linear]
        self.head = linear(H, 2)

    def model(self, y: Tensor) -> None:
        with pyro.plate("sequences", y.shape[1]):
            z = torch.zeros(y.shape[1])
            for t in range(len(y)):
                z = pyro.sample(f"latent_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[t])

    def guide(self, y: Tensor) -> None:
        hidden, _ = self.rnn(y.flip(0).unsqueeze(-1).expand(-1, -1, D))
        with pyro.plate("sequences", y.shape[1]):
            for t, row in enumerate(self.head(hidden.flip(0))):
                pyro.sample(f"latent_{t}", dist.Normal(row[:, 0], row[:, 1].exp()))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_noisy_rnn_in_a_guide_leaves_the_objective_alone(elbo: Any) -> None:
    """As noise is drawn by torch, the ELBO with it is that of a guide given the same noise."""
    y = torch.randn(T, B)
    rnn = NoisyGRU(D, H, noise=Multiplicative(NORMAL), spread=0.5, sites=None)
    smoother = Smoother(rnn)
    torch.manual_seed(2)
    loss = elbo().differentiable_loss(smoother.model, smoother.guide, y)
    torch.manual_seed(2)
    epsilon = [torch.randn(T, B, H)]  # what the noisy RNN drew, and then Pyro the latent states
    run = rnn.forward
    given: Any = lambda x: run(x, epsilon=epsilon)  # noqa: E731
    rnn.forward = given  # type: ignore[method-assign]
    again = elbo().differentiable_loss(smoother.model, smoother.guide, y)
    torch.testing.assert_close(loss, again)
    assert loss.requires_grad


@pytest.mark.filterwarnings("ignore:Found")  # Pyro's own words
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_noise_sites_in_a_guide_are_told_of(sites: Any, elbo: Any) -> None:
    rnn = NoisyGRU(D, H, noise=Additive(NORMAL), spread=0.5, sites=sites)
    smoother = Smoother(rnn)
    with pytest.warns(UserWarning, match="stands in the guide and not in the model.*sites=None"):
        try:
            elbo().loss(smoother.model, smoother.guide, torch.randn(T, B))
        except AssertionError:
            assert elbo is TraceMeanField_ELBO  # Pyro's own end, after the sentence


@pytest.mark.filterwarnings("ignore:Found")
def test_noise_sites_that_the_guide_lacks_are_told_of() -> None:
    model = LanguageModel(7, NoisyRNN(D, H, noise=Additive(NORMAL)))
    x = torch.randint(7, (T, B))
    message = r"lacks the noise site 'rnn.noise_0'.*PriorGuide\(model\)"
    with pytest.warns(UserWarning, match=message):
        Trace_ELBO().loss(model, lambda *args: None, x, x)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_noise_that_is_no_latent_variable_needs_no_guide(sites: Any) -> None:
    """It is hidden from the objective, or observed; nothing is said of it."""
    rnn = NoisyRNN(D, H, noise=Additive(NORMAL), sites=sites)
    model, x = LanguageModel(7, rnn), torch.randint(7, (T, B))
    trace = poutine.trace(model).get_trace(x, x)
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    hidden, observed = poutine.block(model, hide=list(values)), poutine.condition(model, values)
    for program in (hidden, observed):
        assert Trace_ELBO().loss(program, lambda *args: None, x, x) > 0


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_a_guide_without_a_pathwise_gradient_is_told_of(sites: Any) -> None:
    """Where the plate ``time`` hides from Pyro that an ε acts on later steps too."""
    noise = Multiplicative(dist.Bernoulli(0.5))
    rnn = NoisyRNN(D, 1, noise=noise, spread=1.0, sites=sites)
    model, x = LanguageModel(7, rnn), torch.randint(7, (1, B))

    def guide(*args: Any) -> None:
        logits = pyro.param("logits", torch.zeros(1))
        bits = dist.Bernoulli(logits=logits).expand([1, B, 1]).mask(False)
        name = "rnn.noise_0" if sites == "sequence" else "rnn.z_0_0"
        time = pyro.plate("time", 1, dim=-2) if sites == "sequence" else contextlib.nullcontext()
        with time, pyro.plate("batch", B, dim=-1), pyro.validation_enabled(False):
            pyro.sample(name, bits.to_event(1))

    with contextlib.ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        if sites == "sequence":
            stack.enter_context(pytest.warns(UserWarning, match="'rnn.noise_0' has no pathwise"))
        Trace_ELBO().loss(model, guide, x, x)
