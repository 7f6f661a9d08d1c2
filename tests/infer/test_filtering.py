"""The filtering bound: what it contains as special cases, that it is a bound, its gradients.

Statistical tests have fixed seeds and bounds 6 standard errors out, where a normal variable lies
with probability 2e-9; false alarms stay below 1e-6 each.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, RenyiELBO
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    FilteringELBO,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    SmoothingGuide,
    detach_state,
)
from noisin_pyro.infer.particle_filter import filter_window
from noisin_pyro.infer.particles import Particles
from tests.helpers import linear_gaussian, set_parameters
from tests.infer.known_models import enumerated, kalman, masked_tanh, series

K, D, H, T, B = 7, 3, 4, 6, 3
LENGTHS = torch.tensor([6, 2, 4])
STREAMS, ERRORS = 4000, 6.0
MODELS: dict[str, Any] = {
    "additive": {"noise": Additive(dist.Normal(0.0, 1.0)), "spread": Learned(0.5)},
    "multiplicative": {"noise": Multiplicative(dist.Gumbel(0.0, 1.0)), "dropout": 0.3},
    "tied": {"noise": Multiplicative(dist.Bernoulli(0.8)), "tied": True},
    "one layer": {"noise": [None, Additive(dist.Laplace(0.0, 1.0))], "sites": "timestep"},
}
models = pytest.mark.parametrize("name", MODELS)


def words(name: str, kind: Any = NoisyLSTM, **options: Any) -> LanguageModel:
    return LanguageModel(K, kind(D, H, 2, **MODELS[name]), **options).double()


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(K, (T + 1, B))
    return tokens[:-1], tokens[1:]


def seeded(objective: Any, *args: Any) -> list[Tensor]:
    """The loss and its gradients."""
    pyro.set_rng_seed(1)
    loss = objective(*args)
    parameters = list(objective.model.parameters())
    return [loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]


# -- special cases -----------------------------------------------------------------------------


@models
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyGRU, NoisyRNN])
def test_one_particle_is_noisin_to_the_last_digit(name: str, lengths: Any, kind: Any) -> None:
    options = {"dropout_input": 0.2, "dropout_output": 0.2, "dropout_words": 0.1}
    if name == "one layer":
        options = {}
    model, (x, y) = words(name, kind, **options), batch()
    guide = PriorGuide(model)
    ours = seeded(FilteringELBO(1)(model, guide), x, y, None, lengths)
    theirs = seeded(NoisinELBO()(model, guide), x, y, None, lengths)
    assert torch.equal(ours[0], theirs[0])
    for mine, reference in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_without_resampling_it_is_the_importance_weighted_bound() -> None:
    """Value and gradients, with the weights of whole sequences written out on the same noise."""
    model = words("additive")
    x, y = (part[:, :1] for part in batch())
    guide, count = PriorGuide(model), 5
    ours = seeded(FilteringELBO(count, ess_threshold=0.0)(model, guide), x, y)
    pyro.set_rng_seed(1)
    drawn = model.draw_noise(T, count)
    log_weights = []
    for k in range(count):
        epsilon = [one[:, k : k + 1] for one in drawn.rnn]
        z, _ = model.rnn(model.embedding(x), sample=True, epsilon=epsilon)
        log_weights.append(model.emission(z).log_prob(y).sum())
    loss = math.log(count) - torch.stack(log_weights).logsumexp(0)
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    for mine, reference in zip(ours, [loss.detach(), *gradients], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def bound(model: Any, elbo: Any, x: Tensor, y: Tensor, *args: Any) -> Tensor:
    """The estimate of each of many copies of one series, with shape (STREAMS,)."""
    particles = Particles.start(elbo.num_particles, STREAMS, torch.zeros(()).double())
    x, y = x.expand(-1, STREAMS, -1), y.expand(-1, STREAMS, -1)
    threshold = elbo.ess_threshold
    with torch.no_grad():
        found = filter_window(model, x, y, particles, ess_threshold=threshold, sample=True)
    return found.log_probs.sum(0)


@pytest.mark.parametrize("which", ["linear", "tanh"])
def test_the_chain_of_bounds(which: str) -> None:
    """NOISIN < importance-weighted < filtering < log p, each step 6 standard errors wide."""
    if which == "linear":
        model, (x, y) = linear_gaussian(), series(24)
        exact = float(kalman(model, x, y).sum())
    else:
        model, (x, y) = masked_tanh(), series(6)
        exact = float(enumerated(model, x, y).sum(0).logsumexp(0) - math.log(4**6))
    count = 10
    values = [
        bound(model, FilteringELBO(1), x, y),
        bound(model, FilteringELBO(count, 0.0), x, y),
        bound(model, FilteringELBO(count, 0.5), x, y),
    ]
    means = [float(v.mean()) for v in values] + [exact]
    errors = [float(v.std()) / math.sqrt(STREAMS) for v in values] + [0.0]
    for k in range(3):
        gap = means[k + 1] - means[k]
        assert gap > ERRORS * math.hypot(errors[k], errors[k + 1]), (means, errors)


def test_pyros_importance_weighted_bound_is_the_same() -> None:
    model, (x, y) = linear_gaussian(), series(6)
    ours = bound(model, FilteringELBO(4, 0.0), x, y)
    renyi = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True, max_plate_nesting=2)
    wide = [part.expand(-1, STREAMS, -1) for part in (x, y)]
    theirs = -renyi.loss(model, PriorGuide(model), *wide) / STREAMS
    error = float(ours.std()) * math.sqrt(2 / STREAMS)
    assert abs(float(ours.mean()) - theirs) < ERRORS * error


# -- windows -----------------------------------------------------------------------------------


def test_windows_with_carried_particles_are_one_bound() -> None:
    """Every window's loss adds to the logarithm of one filter's evidence."""
    model, (x, y) = linear_gaussian(), series(12)
    exact = float(kalman(model, x, y).sum())
    objective = FilteringELBO(50)(model, PriorGuide(model))
    x, y = x.expand(-1, STREAMS, -1), y.expand(-1, STREAMS, -1)
    total, particles = 0.0, None
    with torch.no_grad():
        for first in range(0, 12, 3):
            part = slice(first, first + 3)
            loss, particles = objective.with_state(x[part], y[part], particles)
            total -= float(loss) / STREAMS
    assert exact - 0.5 < total < exact
    assert particles.state.shape == (1, 50 * STREAMS, 2)


def test_the_state_can_be_detached() -> None:
    model, (x, y) = words("additive"), batch()
    objective = FilteringELBO(4)(model, PriorGuide(model))
    _, particles = objective.with_state(x, y)
    assert particles.log_weights.requires_grad and particles.state[0].requires_grad
    particles = detach_state(particles)
    assert isinstance(particles, Particles)
    assert not (particles.log_weights.requires_grad or particles.state[1].requires_grad)
    loss, _ = objective.with_state(x, y, particles)
    loss.backward()


# -- gradients ---------------------------------------------------------------------------------


def enumerated_bound(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """E [Σ_t log p̂(y_t)] of two particles with one unit, resampled before every later step.

    Over all masks of both particles in all steps and over all pairs of ancestors.
    """
    rnn, emission = model.rnn, model.emission
    pairs = list(itertools.product((0, 1), repeat=2))

    def state(z: Tensor, mask: float, t: int) -> Tensor:
        h = torch.tanh(x[t].view(()) * rnn.weight_ih_l0.view(()) + z * rnn.weight_hh_l0.view(()))
        return h * (1 + rnn.spread[0] * mask)

    def remaining(parents: list[Tensor], t: int) -> Tensor:
        """The expectation of the sum from step t on, given the resampled states."""
        total = torch.zeros((), dtype=torch.float64)
        for masks in pairs:
            z = [state(one, 2.0 * mask - 1.0, t) for one, mask in zip(parents, masks)]
            mean = torch.stack(z) * emission.weight.view(()) + emission.bias.view(())
            weights = dist.Normal(mean, emission.log_scale.exp().view(())).log_prob(y[t].view(()))
            total = total + (weights.logsumexp(0) - math.log(2)) / 4
            chances = weights.softmax(0)
            for a, b in pairs if t + 1 < len(x) else []:
                total = total + chances[a] * chances[b] * remaining([z[a], z[b]], t + 1) / 4
        return total

    return remaining([torch.zeros((), dtype=torch.float64)] * 2, 0)


@pytest.mark.parametrize("complete", [True, False])
def test_gradient_with_the_resampling_term_is_unbiased(complete: bool) -> None:
    """Against the gradient of the bound by enumeration; without the term it is not."""
    model = masked_tanh(units=1, spread=Learned(0.7))  # z_1 is 0.23 or 1.29, h_2 −0.40 or 0.98
    weights = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[2.5]]}
    set_parameters(model.rnn, weights)
    set_parameters(model.emission, {"weight": [[1.0]]})
    x, y = (
        torch.tensor(part).double().view(3, 1, 1) for part in ([1.0, -1.0, 0.3], [0.9, -0.6, 0.8])
    )
    parameters = list(model.parameters())
    exact = torch.autograd.grad(enumerated_bound(model, x, y), parameters)
    elbo = FilteringELBO(2, ess_threshold=1.0, resampling_gradient=complete)
    objective = elbo(model, PriorGuide(model))
    wide = [part.expand(-1, 500, -1) for part in (x, y)]
    draws = []
    for _ in range(100):
        loss = -objective(*wide) / 500
        draws.append(torch.stack([g.sum() for g in torch.autograd.grad(loss, parameters)]))
    found = torch.stack(draws)
    error = found.std(0) / math.sqrt(len(found))
    off = (found.mean(0) - torch.stack([g.sum() for g in exact])).abs() / error
    if complete:
        assert float(off.max()) < 7.0, off  # a t variable with 99 degrees of freedom
    else:
        assert float(off.max()) > 20.0, off


def test_both_gradients_belong_to_one_value() -> None:
    model, (x, y) = linear_gaussian(), series(8)
    values = []
    for complete in (False, True):
        objective = FilteringELBO(4, 1.0, resampling_gradient=complete)(model, PriorGuide(model))
        wide = [part.expand(-1, STREAMS, -1) for part in (x, y)]
        with torch.no_grad():
            values.append(float(objective(*wide)) / STREAMS)
    assert values[0] == pytest.approx(values[1], abs=0.2)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_targets_in_the_padding_may_be_anything(threshold: float, count: int) -> None:
    """Also for the gradient, and under Pyro's validation of values."""
    rnn = NoisyGRU(1, H, noise=Additive(dist.Normal(0.0, 1.0)))
    series = SequenceModel(nn.Identity(), rnn, NormalEmission(H, 1)).double()
    outside = torch.arange(T).unsqueeze(1) >= LENGTHS
    numbers = torch.randn(2, T, B, 1, dtype=torch.float64)
    for model, (x, y), fillings in (
        (words("additive"), batch(), (0, -100)),
        (series, numbers, (0.0, math.nan)),
    ):
        objective = FilteringELBO(count, threshold)(model, PriorGuide(model))
        results = []
        for filling in fillings:
            y[outside] = filling
            results.append(seeded(objective, x, y, None, LENGTHS))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other) and bool(one.isfinite().all())


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [PriorGuide, SmoothingGuide])
def test_svi_and_the_module_take_the_same_step(guide: Any) -> None:
    model, (x, y) = words("additive"), batch()
    pair = guide(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objective = FilteringELBO(4)(model, pair)
    gradients = seeded(objective, x, y)[1:]
    pyro.set_rng_seed(1)
    svi = SVI(model, pair, pyro.optim.SGD({"lr": 1.0}), FilteringELBO(4))
    svi.step(x, y)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        expected = before[name] - gradient
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-9)
    assert float(sum(g.abs().sum() for g in gradients)) > 0


def test_the_module_leaves_the_store_alone() -> None:
    model, (x, y) = words("additive"), batch()
    with poutine.trace():  # inside a Pyro program too
        FilteringELBO(3)(model, PriorGuide(model))(x, y).backward()
    assert not list(pyro.get_param_store())
    assert all(p.grad is not None for p in model.parameters())


# -- a learned proposal ------------------------------------------------------------------------


def smoothing(model: Any, scale: float) -> SmoothingGuide:
    guide = SmoothingGuide(model, hidden_size=6).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in guide.correction.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = scale * draw
    return guide


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_learned_proposal_keeps_the_evidence_unbiased(threshold: float) -> None:
    model, (x, y) = linear_gaussian(scale=1.0), series(5)
    exact, guide = float(kalman(model, x, y).sum()), smoothing(model, 0.15)
    x, y = x.expand(-1, STREAMS, -1), y.expand(-1, STREAMS, -1)
    with torch.no_grad():
        drawn, log_ratios = guide.propose(x, y, particles=64)
        assert float(log_ratios.abs().max()) > 0.5
        particles = Particles.start(64, STREAMS, torch.zeros(()).double())
        found = filter_window(
            model, x, y, particles, ess_threshold=threshold, drawn=drawn, log_ratios=log_ratios
        )
    ratio = (found.log_probs.sum(0) - exact).exp()
    assert abs(float(ratio.mean()) - 1) < ERRORS * float(ratio.std()) / math.sqrt(STREAMS)


@pytest.mark.parametrize("name", ["additive", "tied"])
def test_a_guide_that_is_the_prior_changes_nothing(name: str) -> None:
    noise = {**MODELS[name], "noise": Additive(dist.Normal(0.0, 1.0))}
    model, (x, y) = LanguageModel(K, NoisyLSTM(D, H, 2, **noise)).double(), batch()
    _, log_ratios = SmoothingGuide(model).double().propose(x, y, particles=5)
    assert log_ratios.shape == (T, 5 * B) and float(log_ratios.detach().abs().max()) < 1e-12


# -- what it refuses ---------------------------------------------------------------------------


class Partly(nn.Module):
    """An emission that masks what was not observed, with shape (T, B)."""

    def __init__(self, emission: nn.Module, seen: torch.Tensor) -> None:
        super().__init__()
        self.emission, self.seen = emission, seen

    def forward(self, z: torch.Tensor) -> Any:
        return self.emission(z).mask(self.seen)


def test_an_emission_of_the_whole_window_is_refused() -> None:
    """It would be read T times in each step."""
    rnn = NoisyGRU(1, H, noise=Additive(dist.Normal(0.0, 1.0)))
    seen = torch.tensor([True, False, True, True]).unsqueeze(1)
    model = SequenceModel(nn.Identity(), rnn, Partly(NormalEmission(H, 1), seen))
    x, y = torch.randn(2, 4, 1, 1)
    with pytest.raises(ValueError, match=r"log_prob must have shape \(1, 3\).* got \(4, 3\)"):
        FilteringELBO(3).loss(model, PriorGuide(model), x, y)
    assert FilteringELBO(3, 0.0).loss(model, PriorGuide(model), x, y) > 0


def test_refusals() -> None:
    model, other, (x, y) = words("additive"), words("additive"), batch()
    with pytest.raises(TypeError, match="needs a PriorGuide or a SmoothingGuide .* got PriorGuide"):
        FilteringELBO(2)(model, PriorGuide(other))
    with pytest.raises(TypeError, match="got Linear"):
        FilteringELBO(2)(model, nn.Linear(1, 1))
    objective = FilteringELBO(2)(model, PriorGuide(model))
    with pytest.raises(ValueError, match="needs the observations"):
        objective(x)
    with pytest.raises(TypeError, match="carries particles .* type tuple"):
        objective(x, y, (torch.zeros(2, B, H), torch.zeros(2, B, H)))
    for wrong in ([6, 2, 9], [6, 0, 2], [6, 2]):
        with pytest.raises(ValueError, match="lengths must"):
            objective(x, y, None, torch.tensor(wrong))
    for wrong_y in (y[:, :1], y[:3], y.unsqueeze(-1)):
        with pytest.raises(ValueError, match=r"y must have shape \(6, 3\)"):
            objective(x, wrong_y)
    rnn = NoisyGRU(1, H, noise=Additive(dist.Normal(0.0, 1.0)))
    numbers = SequenceModel(nn.Identity(), rnn, NormalEmission(H, 1))
    with pytest.raises(ValueError, match=r"y must have shape \(6, 3, 1\), got \(6, 3\)"):
        FilteringELBO(2)(numbers, PriorGuide(numbers))(torch.zeros(6, 3, 1), torch.zeros(6, 3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FilteringELBO(0)
    with pytest.raises(ValueError, match="between 0 .* got 2"):
        FilteringELBO(2, 2.0)
    with pytest.raises(ValueError, match="tied=True"):
        tied = words("tied")
        FilteringELBO(2)(tied, PriorGuide(tied))(x, y)
    noise = MeanParameterized(lambda m, s: dist.Poisson(m))
    counts = LanguageModel(K, NoisyRNN(D, H, nonlinearity="relu", noise=noise))
    with pytest.raises(ValueError, match="no pathwise gradient"):
        FilteringELBO(2)(counts, PriorGuide(counts))(x, y)
