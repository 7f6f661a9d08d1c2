"""Priors on the weights and on the spread, with Pyro's automatic guides for them.

Statistical tests have fixed seeds and say how often they would fail by chance on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Multiplicative,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
)
from tests.helpers import NORMAL, D, H, assert_all_close, batch, site_kinds, value_and_gradients

K = 5  # words


class Composed(PyroModule):
    """An automatic guide of what has a prior (weights, spreads), and the states' own prior.

    The states' prior is taken at the values that the automatic guide drew. Without that, a
    site per timestep would have one distribution in the guide and another in the model.
    """

    def __init__(self, model: Any, kind: Any, names: Iterable[str], **options: Any) -> None:
        super().__init__()
        self.auto = kind(poutine.block(model, expose=list(names)), **options)
        self.states = PriorGuide(model)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        values: dict[str, Tensor] = self.auto(*args, **kwargs)
        with poutine.block(hide=list(values)), poutine.condition(data=values):
            self.states(*args, **kwargs)
        return values


def latent_weights(model: Any, prior: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Gives every weight of a model a prior; returns the weights it had."""
    to_pyro_module_(model)
    had = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for module in list(model.modules()):
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, PyroSample(prior(value.detach())))
    assert not list(model.parameters())
    return had


def starting_at(values: dict[str, Tensor]) -> Any:
    """Clones, because an automatic guide would train the very tensors it is given."""
    return init_to_value(values={name: value.clone() for name, value in values.items()})


def flat_prior(weight: Tensor) -> Any:
    return dist.ImproperUniform(constraints.real, (), weight.shape).to_event(0)


def gaussian(weight: Tensor, scale: float = 0.5) -> Any:
    zeros = torch.zeros_like(weight)
    return dist.Normal(zeros, scale).to_event(weight.dim())


def words(sites: Any, cell: str = "lstm", layers: int = 2) -> Any:
    kind, distribution = {
        "lstm": (NoisyLSTM, Multiplicative(dist.Gamma(2.0, 1.0))),
        "tanh": (NoisyRNN, Additive(dist.Gumbel(0.0, 1.0))),
    }[cell]
    return LanguageModel(
        K, kind(D, H, layers, noise=distribution, spread=0.5, sites=sites)
    ).double()


def seeded(svi: SVI, steps: int, *args: Any) -> list[float]:
    """Each step under a seed of its own, so that two runs can be compared step by step."""
    losses = []
    for step in range(steps):
        pyro.set_rng_seed(step)
        losses.append(svi.step(*args))
    return losses


@site_kinds
@pytest.mark.parametrize("cell", ["lstm", "tanh"])
def test_dirac_weights_under_a_flat_prior_are_point_estimates(sites: str, cell: str) -> None:
    """The paper's empirical Bayes: the same losses and the same weights after 10 steps."""
    x, y = batch(K)
    model, dirac = words(sites, cell), words(sites, cell)
    dirac.load_state_dict(model.state_dict())
    point = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    start = latent_weights(dirac, flat_prior)
    guide = Composed(dirac, AutoDelta, start, init_loc_fn=starting_at(start))
    guide(x, y)  # an automatic guide runs the model once, and draws, before it first guides
    losses = seeded(point, 10, x, y)
    pyro.clear_param_store()
    bayes = SVI(dirac, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    assert losses == pytest.approx(seeded(bayes, 10, x, y), rel=1e-10)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
    ours = guide.auto.median()
    assert set(ours) == {name for name, _ in model.named_parameters()} == set(start)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-8, atol=1e-8)
        assert float((parameter.detach() - start[name]).abs().max()) > 0.02


@site_kinds
def test_a_prior_on_dirac_weights_adds_its_own_gradient(sites: str) -> None:
    """MAP: −log p(w) in the loss, and w/s² in its gradient, for w ~ Normal(0, s)."""
    (x, y), scale = batch(K), 0.5
    model, dirac = words(sites), words(sites)
    dirac.load_state_dict(model.state_dict())
    start = latent_weights(dirac, gaussian)
    guide = Composed(dirac, AutoDelta, start, init_loc_fn=starting_at(start))
    guide(x, y)  # makes its parameters
    locs = {name: guide.auto.get_parameter(f"{name}_unconstrained") for name in start}
    point = value_and_gradients(
        model.parameters(), lambda: Trace_ELBO()(model, PriorGuide(model))(x, y)
    )
    maximum = value_and_gradients(
        [locs[name] for name, _ in model.named_parameters()],
        lambda: Trace_ELBO()(dirac, guide)(x, y),
    )
    log_prior = sum(gaussian(weight, scale).log_prob(weight) for weight in start.values())
    pull = [start[name] / scale**2 for name, _ in model.named_parameters()]
    expected = [point[0] - log_prior, *(g + p for g, p in zip(point[1:], pull))]
    assert_all_close(maximum, expected, 1e-10)


@site_kinds
def test_uncertain_weights_train(sites: str) -> None:
    """q(w) Gaussian: the KL of the weights counts and that of the states stays empty.

    The text repeats itself, so there is something to learn: the loss, averaged over 20 steps,
    falls by more than five times what its noise would make of it, and q narrows. New text is
    then predicted by drawing weights, and the states of each draw from their prior.
    """
    text = (torch.arange(9).unsqueeze(1) + torch.arange(8)) % K
    x, y = text[:-1], text[1:]
    model = words(sites, "tanh", 1)
    start = latent_weights(model, lambda weight: gaussian(weight, 1.0))
    guide = Composed(model, AutoNormal, start, init_loc_fn=starting_at(start), init_scale=0.1)

    guide(x, y)
    kl, states, likelihood = terms_of_the_loss(model, guide, x, y)
    assert kl > 1.0 and states == pytest.approx(0.0, abs=1e-10)
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().loss(model, guide, x, y)
    assert loss == pytest.approx(kl - likelihood, rel=1e-12)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    losses = torch.tensor(seeded(svi, 100, x, y))
    fall = losses[:20].mean() - losses[-20:].mean()
    assert (
        float(fall) > 5 * math.hypot(float(losses[:20].std()), float(losses[-20:].std())) / 20**0.5
    )
    samples = Predictive(model, guide=guide.auto, num_samples=100)(x)
    assert samples["y"].shape == (100, *x.shape)
    assert samples["rnn.weight_hh_l0"].squeeze().shape == (100, H, H)
    hits = float((samples["y"] == y).double().mean())
    assert hits > 0.3  # of five words, by chance 0.2


def terms_of_the_loss(model: Any, guide: Any, *args: Any) -> tuple[float, float, float]:
    """KL terms of weights and of states, estimated on one draw, and log p(y | z)."""
    pyro.set_rng_seed(1)
    guided = poutine.trace(guide).get_trace(*args)
    trace = poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args)
    sums: dict[str, float] = {"weights": 0.0, "states": 0.0, "y": 0.0}
    for sign, one in ((1, guided), (-1, trace)):
        one.compute_log_prob()
        for name, site in one.nodes.items():
            if site["type"] != "sample" or name in ("time", "batch"):
                continue
            part = "y" if name == "y" else "states" if "_0" in name else "weights"
            sums[part] += sign * float(site["log_prob_sum"].detach())
    return sums["weights"], sums["states"], -sums["y"]


@site_kinds
def test_states_take_their_prior_at_the_weights_that_were_drawn(sites: str) -> None:
    """A guide that lists the two parts without handing the weights on is not the prior.

    With a site per timestep its states follow other weights than the model's, and no error
    tells; with a site per sequence the noise has no parameter, so nothing can go wrong.
    """
    model, (x, y) = words(sites, "tanh", 1), batch(K)
    start = latent_weights(model, gaussian)
    guide = Composed(model, AutoNormal, start, init_scale=0.5)

    def listed(*args: Any) -> None:
        guide.auto(*args)
        with poutine.block(hide=list(start)):
            guide.states(*args)

    guide(x, y)
    assert terms_of_the_loss(model, guide, x, y)[1] == pytest.approx(0.0, abs=1e-10)
    _, states, _ = terms_of_the_loss(model, listed, x, y)
    assert (abs(states) > 1.0) == (sites == "timestep")


def spread_with_a_prior(prior: Any, sites: Any) -> tuple[Any, Tensor, Tensor, float]:
    """A model in which only γ is unknown, and c in its loss, which is constant + c γ².

    Noise that does not feed back costs tr Cov(V z)/(2σ²) = γ² |V|²/(2σ²) at each observation.
    """
    rnn = NoisyRNN(1, 2, noise=Additive(NORMAL), spread=prior, sites=sites, noise_to="output")
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(2, 1)).double()
    model.emission.weight.data = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    x = torch.randn(2, 100, 1, dtype=torch.float64)
    mean = model.predict(x, sample=False)[0].mean.detach()
    return model, x, mean + torch.randn_like(mean), mean.numel() * 0.2 / 2


def descend(model: Any, guide: Any, x: Tensor, y: Tensor, watch: Callable[[], Any]) -> Tensor:
    """SVI of the spread alone; what is watched, averaged over the last sixty steps.

    The step falls. That of the weights is 0, because Pyro 1.9.2 trains frozen ones too.
    """
    estimator = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=2)
    falling = {"lr": 0.1, "lrd": 0.985, "betas": (0.9, 0.95), "clip_norm": math.inf}
    optimizer = pyro.optim.ClippedAdam(
        lambda name: falling if name.startswith("auto") else {"lr": 0.0}
    )
    svi = SVI(model, guide, optimizer, estimator)
    seen = []
    for _ in range(250):
        svi.step(x, y)
        seen.append(torch.as_tensor(watch()))
    return torch.stack(seen[-60:]).mean(0)


@pytest.mark.parametrize(
    ("sites", "start"), [("sequence", 0.03), ("sequence", 2.0), ("timestep", 2.0)]
)
def test_a_dirac_spread_settles_between_its_prior_and_zero(sites: str, start: float) -> None:
    """At the maximum of log p(γ) − c γ², wherever it began: the prior is what floors γ.

    For γ ~ Gamma(a, b) that is the positive root of 2c γ² + b γ = a − 1. Within 5 %, about
    seven times what SVI leaves open.
    """
    a, b = 5.0, 2.0
    prior = dist.Gamma(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    model, x, y, c = spread_with_a_prior(prior, sites)
    initial = {"rnn.spread_l0": torch.tensor(start, dtype=torch.float64)}
    guide = Composed(model, AutoDelta, initial, init_loc_fn=starting_at(initial))
    spread = descend(model, guide, x, y, lambda: guide.auto.median()["rnn.spread_l0"].detach())
    expected = (math.sqrt(b * b + 8 * c * (a - 1)) - b) / (4 * c)
    assert float(spread) == pytest.approx(expected, rel=0.05)
    assert expected < 0.2 * (a - 1) / b  # the prior alone would have it there


def test_an_uncertain_spread_finds_the_best_of_its_family() -> None:
    """log γ ~ q = Normal(m, s), prior Normal(μ, 1): m and s minimise KL + c E_q[γ²].

    E_q[γ²] = exp(2m + 2s²), so s² = 1/(1 − 2m) and m = −2c E_q[γ²]. Both within 0.1,
    about six times what SVI leaves open.
    """
    mu = torch.zeros((), dtype=torch.float64)
    model, x, y, c = spread_with_a_prior(dist.LogNormal(mu, torch.ones_like(mu)), "sequence")
    guide = Composed(model, AutoNormal, ["rnn.spread_l0"], init_scale=0.5)
    guide(x, y)

    def location_and_scale() -> Tensor:
        loc, scale = (getattr(guide.auto, part).rnn.spread_l0 for part in ("locs", "scales"))
        return torch.stack([loc.detach(), scale.detach()])

    found = descend(model, guide, x, y, location_and_scale)

    m, below = 0.0, -5.0  # by bisection
    while m - below > 1e-9:
        middle = (m + below) / 2
        slope = middle + 2 * c * math.exp(2 * middle + 2 / (1 - 2 * middle))
        below, m = (below, middle) if slope > 0 else (middle, m)
    expected = torch.tensor([m, 1 / math.sqrt(1 - 2 * m)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.1)
    assert m < -1.0 and float(expected[1]) < 0.7  # smaller and surer than the prior
