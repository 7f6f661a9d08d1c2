"""What unbiased noise does to the loss and to the states, to the last digit where it is discrete.

A base with few values lets every path of the noise be listed, so an expectation is a finite sum
and nothing is left to chance, but in the one test that samples. Weights are fixed; an order in γ
is the slope of a logarithm.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    CategoricalEmission,
    Learned,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
)

INPUTS, H, T, K = 2, 2, 3, 4
TORCH: dict[Any, Any] = {NoisyRNN: nn.RNN, NoisyLSTM: nn.LSTM, NoisyGRU: nn.GRU}
SYMMETRIC, SKEWED, THREE = (
    dist.Bernoulli(0.5),
    dist.Bernoulli(0.25),
    dist.Binomial(2, torch.tensor(0.75)),
)

cells = pytest.mark.parametrize("cell", TORCH)
kinds = pytest.mark.parametrize("kind", [Additive, Multiplicative])
bases = pytest.mark.parametrize("base", [SYMMETRIC, SKEWED, THREE], ids=str)
orders = pytest.mark.parametrize(
    ("base", "order"), [(SYMMETRIC, 4), (SKEWED, 3)], ids=["symmetric", "skewed"]
)
SPREADS = (0.04, 0.02, 0.01)


def randn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(cell: Any, noise: Any, spread: Any, layers: int = 1, **options: Any) -> Any:
    """An RNN in double precision with weights far from zero and from saturation."""
    rnn = cell(INPUTS, H, layers, noise=noise, spread=spread, dtype=torch.float64, **options)
    fix(rnn)
    return rnn


def fix(module: nn.Module) -> None:
    with torch.no_grad():
        for number, (name, parameter) in enumerate(module.named_parameters()):
            if parameter.dim() and "spread" not in name:
                parameter.copy_(0.7 * randn(*parameter.shape, seed=number))


def modelled(rnn: Any, emission: Any) -> Any:
    emission = emission.double()
    fix(emission)
    return SequenceModel(nn.Identity(), rnn, emission)


def start(rnn: Any, batch: int) -> Any:
    """A carried state, the same for each column of a batch."""
    parts = tuple(randn(rnn.num_layers, 1, H, seed=s).tanh().repeat(1, batch, 1) for s in (2, 3))
    return parts if isinstance(rnn, NoisyLSTM) else parts[0]


def listed(noise: Any, steps: int, units: int = H) -> tuple[Tensor, Tensor]:
    """Every path of ε with shape (T, M, H), one to a column, and its probability (M,)."""
    distribution = noise.standardized(torch.empty((), dtype=torch.float64))
    values = distribution.enumerate_support()
    mass = distribution.log_prob(values).exp()
    for power, moment in ((0, 1.0), (1, 0.0), (2, 1.0)):
        assert float((mass * values**power).sum()) == pytest.approx(moment, abs=1e-12)
    choices = torch.cartesian_prod(*[torch.arange(len(values))] * (steps * units))
    choices = choices.view(-1, steps, units).movedim(0, 1)
    return values[choices], mass[choices].prod(-1).prod(0)


def slopes(values: list[Tensor]) -> list[float]:
    """d log |value| / d log γ between neighbouring ``SPREADS``, which halve."""
    return [math.log2(abs(float(a / b))) for a, b in zip(values, values[1:])]


# -- the regulariser ---------------------------------------------------------------------------


def losses(model: Any, epsilon: Tensor, mass: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Expected and deterministic −log p(y_t | z_t) for each step, with shape (T,)."""
    x = randn(T, 1, INPUTS)
    paths = len(mass)
    wide = [part.expand(-1, paths, *part.shape[2:]) for part in (x, y)]
    program = poutine.condition(model, {"rnn.noise_0": epsilon})
    noisy = poutine.trace(program).get_trace(*wide, start(model.rnn, paths))
    clean = poutine.trace(model).get_trace(x, y, start(model.rnn, 1), sample=False)
    for trace in (noisy, clean):
        trace.compute_log_prob()
    expected = (mass * noisy.nodes["y"]["log_prob"]).sum(-1)
    return -expected, -clean.nodes["y"]["log_prob"].squeeze(-1)


def clean_states(rnn: Any) -> Tensor:
    """h with shape (T, H), by torch."""
    return reference(rnn)(randn(T, 1, INPUTS), start(rnn, 1))[0].squeeze(1)


def reference(rnn: Any) -> Any:
    """torch's own RNN with the same weights, which share its gradients."""
    module = TORCH[type(rnn)](INPUTS, H, rnn.num_layers, dtype=torch.float64)
    own = dict(rnn.named_parameters())
    shared = {name: own[name] for name, _ in module.named_parameters()}
    return lambda *args: torch.func.functional_call(module, shared, args)


def covariance(rnn: Any) -> Tensor:
    """Cov(z_t | h_t), with shape (T, H, H); all of Cov(z_t) if noise goes to the output alone."""
    (spread,), h = rnn.spread, clean_states(rnn)
    deviation = spread * (h if isinstance(rnn.noise[0], Multiplicative) else torch.ones_like(h))
    return torch.diag_embed(deviation**2)


def gaussian(model: Any) -> Tensor:
    """tr Cov(V z_t)/(2σ²) with shape (T,), σ being another for each observed variable."""
    v, scale = model.emission.weight, model.emission.log_scale.exp()
    image = v @ covariance(model.rnn) @ v.T
    return (image.diagonal(dim1=-2, dim2=-1) / (2 * scale**2)).sum(-1)


@cells
@kinds
@bases
def test_regulariser_of_a_gaussian_emission(cell: Any, kind: Any, base: Any) -> None:
    """E[loss] = loss + tr Cov(Vz)/(2σ²), in value and in every gradient, at any γ.

    Noise that is fed back breaks the equation: the test can fail.
    """
    noise = kind(base)
    epsilon, mass = listed(noise, T)
    y = randn(T, 1, 3, seed=4)
    for noise_to in ("output", "both"):
        rnn = build(cell, noise, Learned(0.7, per="unit"), noise_to=noise_to)
        model = modelled(rnn, NormalEmission(H, 3))
        expected, clean = losses(model, epsilon, mass, y)
        difference = expected - clean - gaussian(model)
        if noise_to == "both":
            assert float(difference.detach()[1:].abs().min()) > 1e-4
            continue
        torch.testing.assert_close(difference.detach(), torch.zeros_like(clean), rtol=0, atol=1e-12)
        assert float(gaussian(model).detach().min()) > 0.02
        leaves = list(model.parameters())
        ours, theirs = (
            torch.autograd.grad(value.sum(), leaves)
            for value in (expected, clean + gaussian(model))
        )
        for one, two in zip(ours, theirs):
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)


@kinds
@pytest.mark.parametrize("base", [dist.Normal(0.0, 1.0), dist.Gamma(2.0, 1.0)], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_regulariser_of_a_gaussian_emission_by_sampling(kind: Any, base: Any, tied: bool) -> None:
    """For continuous noise, tied or not: its distribution at one step is all that counts.

    The limit of 7 standard errors is exceeded once in 10⁷ seeds (Student's t, 39 degrees of
    freedom); the regulariser itself is 30 or more standard errors away from 0.
    """
    rnn = build(NoisyLSTM, kind(base), 0.7, noise_to="output", tied=tied)
    model = modelled(rnn, NormalEmission(H, 3))
    x, y = randn(T, 1, INPUTS), randn(T, 1, 3, seed=4)
    elbo = NoisinELBO(2000, vectorize_particles=True)
    state = start(rnn, 1)
    draws = torch.tensor([elbo.loss(model, PriorGuide(model), x, y, state) for _ in range(40)])
    clean = -float(model.predict(x, state, sample=False)[0].log_prob(y).sum().detach())
    error, extra = float(draws.std()) / math.sqrt(40), float(draws.mean()) - clean
    assert abs(extra - float(gaussian(model).sum().detach())) < 7 * error
    assert extra > 20 * error


def categorical(model: Any) -> Tensor:
    """½ tr(Cov(V z_t) ∇²A) with shape (T,), where A is logsumexp, at the logits of h_t."""
    v = model.emission.weight
    p = model.emission(clean_states(model.rnn)).probs
    hessian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    image = v @ covariance(model.rnn) @ v.T
    return 0.5 * (image * hessian).sum((-2, -1))


@cells
@kinds
@orders
def test_regulariser_of_a_categorical_emission(cell: Any, kind: Any, base: Any, order: int) -> None:
    """E[lse(Vz)] − lse(Vh) ≥ 0 whatever y, equal to ½ tr(Cov(Vz) ∇²A) up to O(γ⁴).

    Up to O(γ³) where ε is skewed: the third moment's term is no longer zero.
    """
    noise = kind(base)
    epsilon, mass = listed(noise, T)
    remainders = []
    for spread in (1.0, *SPREADS):
        rnn = build(cell, noise, spread, noise_to="output")
        model = modelled(rnn, CategoricalEmission(H, K))
        with torch.no_grad():
            targets = (torch.tensor([0, 3, 1]), torch.tensor([2, 2, 0]))
            pairs = [losses(model, epsilon, mass, y.unsqueeze(-1)) for y in targets]
            first, second = (expected - clean for expected, clean in pairs)
            torch.testing.assert_close(first, second, rtol=0, atol=1e-13)  # y is not in it
            assert float(first.min()) > 0
            remainders.append((first - categorical(model)).abs().sum())
    assert float(remainders[0]) > 1e-3  # at γ = 1 the second order is not the whole
    assert slopes(remainders[1:]) == pytest.approx([order] * 2, abs=0.15)


# -- unbiasedness, and what becomes of it through time -------------------------------------------


@cells
@kinds
@bases
def test_noise_is_unbiased_given_the_state_before(cell: Any, kind: Any, base: Any) -> None:
    """E[z_t | z_{t-1}] = h_t, the paper's claim: one step of torch's RNN from that very z_{t-1}.

    The past is a noisy one, drawn at random, and every value of this step's ε is listed.
    """
    noise = kind(base)
    rnn = build(cell, noise, 0.7)
    x, distribution = randn(T, 1, INPUTS), noise.standardized(torch.empty((), dtype=torch.float64))
    now, mass = listed(noise, 1)
    torch_rnn = reference(rnn)
    with torch.no_grad():
        past, before = distribution.expand([T, 1, H]).sample(), start(rnn, 1)
        for t in range(T):
            paths = torch.cat([past[:t].expand(-1, len(mass), -1), now])
            wide = x[: t + 1].expand(-1, len(mass), -1)
            z = rnn(wide, start(rnn, len(mass)), epsilon=[paths], sample=True)[0][t]
            h = torch_rnn(x[t : t + 1], before)[0].view(H)
            torch.testing.assert_close(mass @ z, h, rtol=0, atol=1e-13)
            assert float((mass @ (z - h) ** 2).min()) > 1e-6  # there is noise to average out
            _, before = rnn(x[: t + 1], start(rnn, 1), epsilon=[past[: t + 1]], sample=True)


def drifts(cell: Any, noise: Any, spread: float, layers: int = 1, **options: Any) -> Tensor:
    """E[z_t] − h_t, h being the deterministic path, with shape (T, H); T = 2 for two layers."""
    rnn = build(cell, noise, spread, layers, **options)
    steps = T if layers == 1 else 2
    epsilon, mass = listed(noise, steps, layers * H)
    x = randn(steps, 1, INPUTS)
    with torch.no_grad():
        wide = x.expand(-1, len(mass), -1)
        each = epsilon.split(H, -1)
        z = rnn(wide, start(rnn, len(mass)), epsilon=each, sample=True)[0]
        return torch.einsum("m,tmh->th", mass, z) - rnn(x, start(rnn, 1), sample=False)[0][:, 0]


@cells
@kinds
@bases
def test_marginal_mean_drifts_where_noise_feeds_back(cell: Any, kind: Any, base: Any) -> None:
    """E[z_t] is not the deterministic path for t > 1, by an amount of second order in γ.

    Skewed or not: the leading term needs only the variance of ε.
    """
    for t in range(T):
        drift = [drifts(cell, kind(base), spread)[t] for spread in SPREADS]
        if t == 0:
            assert float(torch.stack(drift).abs().max()) < 1e-14
            continue
        for unit in range(H):
            values = [one[unit] for one in drift]
            assert abs(float(values[0])) > 1e-8  # rounding is 1e-16
            assert slopes(values) == pytest.approx([2] * 2, abs=0.15)


@kinds
@orders
def test_marginal_drift_of_a_tanh_rnn(kind: Any, base: Any, order: int) -> None:
    """At t = 2 it is ½ f''(a) Σ_u W² Var(z_u): tanh bends towards 0, and so does the mean."""
    remainders = []
    for spread in SPREADS:
        rnn = build(NoisyRNN, kind(base), spread)
        with torch.no_grad():
            f = clean_states(rnn)[1]
            variance = covariance(rnn)[0].diagonal()
            leading = -f * (1 - f**2) * (rnn.weight_hh_l0**2 @ variance)
            remainders.append((drifts(NoisyRNN, kind(base), spread)[1] - leading).abs().sum())
    assert slopes(remainders) == pytest.approx([order] * 2, abs=0.15)


@kinds
@bases
def test_no_drift_of_a_linear_rnn(kind: Any, base: Any) -> None:
    drift = drifts(NoisyRNN, kind(base), 0.7, nonlinearity="identity")
    assert float(drift.abs().max()) < 1e-13


@cells
@kinds
@bases
def test_no_drift_without_recurrent_noise(cell: Any, kind: Any, base: Any) -> None:
    """E[z_t] is the deterministic path at every step, at any γ."""
    drift = drifts(cell, kind(base), 0.7, noise_to="output")
    assert float(drift.abs().max()) < 1e-13


@cells
@kinds
def test_drift_without_recurrent_noise_above_a_noisy_layer(cell: Any, kind: Any) -> None:
    """A second layer reads noisy states through its own nonlinearity: its mean drifts."""
    drift = drifts(cell, kind(SYMMETRIC), 0.7, layers=2, noise_to="output")
    assert float(drift.abs().min()) > 1e-5
