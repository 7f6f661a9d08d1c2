"""Predictive samples and importance sampling, against the exact answers of a linear Gaussian model.

Statistical tests have fixed seeds and say how often they would fail by chance on others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import EmpiricalMarginal, Importance, Predictive, WeighedPredictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from noisin_pyro import (
    Additive,
    BernoulliEmission,
    CategoricalEmission,
    LanguageModel,
    NoisyGRU,
    NoisyLSTM,
    NoisyMinGRU,
    NoisyRecurrent,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    weight_priors,
)
from tests.helpers import (
    NORMAL,
    B,
    D,
    H,
    K,
    T,
    batch,
    exact,
    linear_gaussian,
    series,
    site_kinds,
    t_statistics,
)


def states_in(samples: Any, sites: str) -> Tensor:
    """The states of a dictionary of samples, with shape (S, T, B, H)."""
    if sites == "sequence":
        return samples["rnn.z_0"]
    steps = sum(name.startswith("rnn.z_0_") for name in samples)
    return torch.cat([samples[f"rnn.z_0_{t}"] for t in range(steps)], -3)


@site_kinds
@pytest.mark.parametrize("guided", [False, True], ids=["model alone", "with PriorGuide"])
def test_prior_predictive_samples(sites: str, guided: bool) -> None:
    """Shapes, and the moments of y, against the joint Gaussian.

    The largest of 48 standardised errors exceeds 6 once in 10⁷ seeds.
    """
    draws, steps, sequences = 20_000, 4, 2
    model = linear_gaussian(sites)
    x = torch.randn(steps, sequences, 1, dtype=torch.float64)
    predictive = Predictive(
        model,
        guide=PriorGuide(model) if guided else None,
        num_samples=draws,
        parallel=True,
    )
    samples = predictive(x)
    shapes = {"y": (steps, sequences, 1)}
    if sites == "sequence":
        shapes |= {"rnn.noise_0": (steps, sequences, 2), "rnn.z_0": (steps, sequences, 2)}
    else:
        shapes |= {f"rnn.z_0_{t}": (1, sequences, 2) for t in range(steps)}
    for name, shape in shapes.items():
        assert samples[name].shape == (draws, *shape)
    assert set(samples) - set(shapes) == {"rnn.state"}
    final = samples["rnn.state"].reshape(draws, sequences, 2)
    z = states_in(samples, sites)
    torch.testing.assert_close(final, z[:, -1])  # the state that the next window would start at
    if sites == "sequence":  # the guide's noise is what the model's states are made of
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        h = before @ model.rnn.weight_hh_l0.T + x @ model.rnn.weight_ih_l0.T
        torch.testing.assert_close(z, h + 0.6 * samples["rnn.noise_0"])
    for column in range(sequences):
        joint = exact(model, x[:, column : column + 1])
        assert_moments(samples["y"][:, :, column, 0], joint.mean_y, joint.cov_y)
        cross = z[:, :, column].flatten(1) - joint.mean_z
        residual = samples["y"][:, :, column, 0] - joint.mean_y
        sampled = cross.T @ residual / draws
        error = (
            joint.cov_z.diagonal().outer(joint.cov_y.diagonal()) + joint.cov_zy.square()
        ) / draws
        assert float(((sampled - joint.cov_zy) / error.sqrt()).abs().max()) < 6.0


def assert_moments(samples: Tensor, mean: Tensor, cov: Tensor) -> None:
    """Of Gaussian samples with shape (S, N), each within six standard errors."""
    count, variance = len(samples), cov.diagonal()
    error = (variance / count).sqrt()
    assert float(((samples.mean(0) - mean) / error).abs().max()) < 6.0
    error = ((variance.outer(variance) + cov.square()) / count).sqrt()
    assert float(((samples.T.cov() - cov) / error).abs().max()) < 6.0


def test_predictive_runs_in_turn_and_as_one_batch_alike() -> None:
    """The same shapes and, sample by sample, the same function of the noise."""
    rnn = NoisyLSTM(D, H, 2, noise=Additive(NORMAL), spread=dist.LogNormal(-1.0, 0.3))
    model = LanguageModel(K, rnn).double()
    guide, (x, _) = PriorGuide(model), batch()
    names = {"rnn.noise_0", "rnn.noise_1", "rnn.spread_l0", "rnn.spread_l1"}
    for parallel in (False, True):
        samples = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(x)
        assert set(samples) == {*names, "rnn.z_0", "rnn.z_1", "rnn.state", "y"}
        assert samples["y"].shape == (6, T, B)
        again = Predictive(model, {name: samples[name] for name in names}, parallel=not parallel)(x)
        for layer in range(2):
            torch.testing.assert_close(again[f"rnn.z_{layer}"], samples[f"rnn.z_{layer}"])
        assert not torch.equal(again["y"], samples["y"])  # which is drawn anew


WEIGHTS = ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyMinGRU])
@pytest.mark.parametrize("emission", ["categorical", "normal", "bernoulli"])
@torch.no_grad()
def test_predictive_with_a_guide_of_the_weights(kind: Any, emission: str) -> None:
    """Predictive puts dimensions of size 1 before the weights that the guide drew."""
    rnn = kind(D, H, noise=Additive(NORMAL), spread=dist.LogNormal(-1.0, 0.3))
    kinds = {"categorical": CategoricalEmission, "normal": NormalEmission}
    head = kinds.get(emission, BernoulliEmission)(H, K)
    model = SequenceModel(torch.nn.Identity(), rnn, head)
    x, start = torch.randn(T, B, D), weight_priors(model, 0.5)
    guide = PriorGuide(model, rest=partial(AutoNormal, init_loc_fn=start, init_scale=0.1))
    samples = Predictive(model, guide=guide, num_samples=2)(x)
    assert samples["y"].shape[:3] == (2, T, B)
    plain = kind(D, H, noise=Additive(NORMAL))
    for i in range(2):
        drawn = {name: value[i].squeeze() for name, value in samples.items()}
        plain.load_state_dict(
            {**rnn.state_dict(), **{n.removeprefix("rnn."): v for n, v in drawn.items()}},
            strict=False,
        )
        z, _ = plain(x, epsilon=[samples["rnn.noise_0"][i]])
        torch.testing.assert_close(samples["rnn.z_0"][i], z)
    with pytest.raises(ValueError, match="inside a plate.*Predictive: parallel=False"):
        Predictive(model, guide=guide, num_samples=2, parallel=True)(x)


@torch.no_grad()
def test_predictive_with_a_guide_of_a_users_program() -> None:
    rnn, x = NoisyLSTM(D, H, noise=Additive(NORMAL)), torch.randn(T, B, D)
    shown = poutine.block(rnn, expose=WEIGHTS)
    auto = AutoNormal(shown, init_loc_fn=weight_priors(rnn, 0.5), init_scale=0.1)

    def guide(x: Tensor) -> None:
        auto(x)
        rnn.draw_noise(T, B)  # and no weight

    samples = Predictive(rnn, guide=guide, num_samples=2)(x)
    plain = NoisyLSTM(D, H, noise=Additive(NORMAL))
    for i in range(2):
        drawn = {name: samples[name][i].squeeze() for name in WEIGHTS}
        plain.load_state_dict({**rnn.state_dict(), **drawn}, strict=False)
        torch.testing.assert_close(samples["z_0"][i], plain(x, epsilon=[samples["noise_0"][i]])[0])


@torch.no_grad()
def test_predictive_with_a_guide_of_an_embedding_and_a_cell() -> None:
    """Weights that torch's own functions read."""

    def make() -> LanguageModel:
        cell = torch.nn.GRUCell(D, H)
        return LanguageModel(K, NoisyRecurrent(cell, noise=Additive(NORMAL))).double()

    model, plain, (x, _) = make(), make(), batch()
    names = ["embedding.weight", "rnn.cell_l0.weight_hh"]
    start = weight_priors(model, 0.5, names=names)
    guide = PriorGuide(model, rest=partial(AutoNormal, init_loc_fn=start, init_scale=0.1))
    samples = Predictive(model, guide=guide, num_samples=2)(x)
    for i in range(2):
        drawn = {name: samples[name][i].squeeze() for name in names}
        missing, _ = plain.load_state_dict({**model.state_dict(), **drawn}, strict=False)
        assert not missing
        z, _ = plain.rnn(plain.embedding(x), epsilon=[samples["rnn.noise_0"][i]])
        torch.testing.assert_close(samples["rnn.z_0"][i], z)


@site_kinds
@torch.no_grad()
def test_posterior_predictive_samples(sites: str) -> None:
    """Weighted draws have the exact mean and variance of a second y given the first.

    Each within six standard errors of a ratio of means; eight of them, so once in 10⁷ seeds.
    """
    model, draws, steps = linear_gaussian(sites, scale=1.0), 40_000, 4
    x, y, joint = series(model, steps)
    guide = PriorGuide(model)
    predictive = WeighedPredictive(model, guide=guide, num_samples=draws, parallel=True)
    weighed = predictive(x, model_guide=poutine.condition(model, data={"y": y}))
    weights = weighed.get_normalized_weights()
    mean, cov = joint.posterior(y)
    read = torch.kron(torch.eye(steps, dtype=torch.float64), model.emission.weight)
    mean, variance = read @ mean + model.emission.bias, (read @ cov @ read.T).diagonal() + 1.0
    again = weighed.samples["y"].reshape(draws, steps)
    assert_weighted_mean(weights, again, mean)
    assert_weighted_mean(weights, (again - mean).square(), variance)
    # which the prior's are far from
    assert float(((mean - joint.mean_y) / variance.sqrt()).abs().max()) > 0.7
    assert float((variance / joint.cov_y.diagonal()).min()) < 0.6


def assert_weighted_mean(weights: Tensor, samples: Tensor, expected: Tensor) -> None:
    """A self-normalised estimate, within six standard errors; weights sum to 1."""
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert 1.0 / float(weights.square().sum()) > 100  # or the errors would mean nothing
    estimate = weights @ samples
    error = (weights.square() @ (samples - estimate).square()).sqrt()
    assert float(((estimate - expected) / error).abs().max()) < 6.0


def test_without_y_the_model_draws_one() -> None:
    """In and outside Pyro, from the states of that very pass; with y it hands it back."""
    model = LanguageModel(K, NoisyGRU(D, H, noise=Additive(NORMAL), spread=0.5))
    x, y = batch()
    trace = poutine.trace(model).get_trace(x)
    site: Any = trace.nodes["y"]
    assert not site["is_observed"] and site["value"].shape == (T, B)
    torch.testing.assert_close(
        site["fn"].log_prob(site["value"]),
        model.emission(trace.nodes["rnn.z_0"]["value"]).log_prob(site["value"]),
    )
    assert trace.nodes["_RETURN"]["value"][0] is site["value"]
    assert poutine.trace(model).get_trace(x, y).nodes["y"]["is_observed"]
    torch.manual_seed(1)
    drawn, _ = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(poutine.trace(model).get_trace(x).nodes["y"]["value"], drawn)
    assert model(x, y)[0] is y
    free = poutine.trace(poutine.uncondition(model)).get_trace(x, y)
    assert free.nodes["_RETURN"]["value"][0] is free.nodes["y"]["value"] is not y
    assert not torch.equal(drawn, model(x)[0])


@site_kinds
def test_importance_weights_give_the_posterior(sites: str) -> None:
    """E[z_t | y] of every state, and log p(y), each within six of its standard errors.

    Seven of them, so once in 10⁷ seeds.
    """
    model, steps = linear_gaussian(sites, scale=1.0), 3
    x, y, joint = series(model, steps)
    with torch.no_grad():
        posterior = Importance(model, PriorGuide(model), num_samples=800).run(x, y)
    weights = posterior.get_normalized_weights()
    samples = {
        name: torch.stack([trace.nodes[name]["value"] for trace in posterior.exec_traces])
        for name, site in posterior.exec_traces[0].nodes.items()
        if name.startswith("rnn.z_0")
    }
    z = states_in(samples, sites).flatten(1)
    mean, cov = joint.posterior(y)
    assert_weighted_mean(weights, z, mean)
    assert float(((mean - joint.mean_z) / cov.diagonal().sqrt()).abs().max()) > 0.7
    last = EmpiricalMarginal(posterior, "rnn.z_0" if sites == "sequence" else "rnn.z_0_2")
    torch.testing.assert_close(last.mean.flatten()[-2:], (weights @ z)[-2:])
    ratio = len(z) * weights * (posterior.get_log_normalizer() - joint.log_evidence(y)).exp()
    assert abs(float(t_statistics(ratio, 1.0))) < 6.0
