"""Noise that is no sample site, and noise that stands in only one of model and guide."""

from __future__ import annotations

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
