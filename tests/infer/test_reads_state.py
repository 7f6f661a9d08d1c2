"""A guide that reads the state: it starts as the prior and contains a linear Gaussian posterior.

The posterior of that model is p(z_t | z_{t-1}, y_{t:T}) ∝ p(z_t | z_{t-1}) exp(−½ z'P z + η'z),
with P and η from a recursion backwards in time. With it as the guide every draw has the same
importance weight, log p(y).
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor, nn
from torch.testing import assert_close

from noisin_pyro import (
    Additive,
    AnnealedELBO,
    FilteringELBO,
    LanguageModel,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    SmoothingGuide,
)
from noisin_pyro.infer.state_head import StateHead
from noisin_pyro.noise.correlated import Correlated
from noisin_pyro.noise.location_scale import LocationScale
from noisin_pyro.noise.standardized import Standardized
from tests.helpers import linear_gaussian, random_tokens, t_statistics, value_and_gradients
from tests.infer.known_models import kalman, series

NORMAL = Additive(dist.Normal(0.0, 1.0))
LENGTHS = torch.tensor([6, 2, 4])
MODELS: dict[str, dict[str, Any]] = {
    "additive": {"noise": NORMAL, "spread": 0.4},
    "multiplicative": {"noise": Multiplicative(dist.Laplace(0.0, 1.0)), "spread": 0.4},
    "one layer": {"noise": [None, NORMAL], "spread": 0.4},
    "output": {"noise": NORMAL, "spread": 0.4, "noise_to": "output"},
    "prior on γ": {"noise": NORMAL, "spread": dist.Gamma(4.0, 10.0)},
}


def words(options: dict[str, Any]) -> LanguageModel:
    return LanguageModel(11, NoisyLSTM(4, 5, 2, sites="timestep", **options)).double()


def batch() -> tuple[Tensor, Tensor]:
    return random_tokens(11, 6, 3)


def log_weights(model: Any, guide: Any, *args: Any, draws: int) -> Tensor:
    """log p(y, z) − log q(z) of draws of the guide, one by one."""
    weights = []
    with torch.no_grad():
        for _ in range(draws):
            guided = poutine.trace(guide).get_trace(*args)
            trace = poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args)
            weights.append(trace.log_prob_sum() - guided.log_prob_sum())
    return torch.stack(weights)


# -- the density ---------------------------------------------------------------------------------


def triangular(scale: Tensor, base: Any = None) -> Correlated:
    epsilon = Standardized(dist.Normal(0.0, 1.0) if base is None else base, 0.0, 1.0, like=scale)
    loc = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    shift = torch.tensor([0.1, 0.2, -0.4], dtype=torch.float64)
    tril = torch.tensor([[0.5, 0, 0], [0.7, 1.5, 0], [-0.2, 0.4, 0.8]], dtype=torch.float64)
    return Correlated(LocationScale(epsilon, loc, scale), shift, tril)


@pytest.mark.parametrize("scale", [[0.4, 0.4, 0.4], [0.6, -0.5, 0.2]])
def test_the_density_is_a_multivariate_normal(scale: list[float]) -> None:
    """Signs of the scale count: multiplicative noise has that of the state."""
    q = triangular(torch.tensor(scale, dtype=torch.float64))
    root = torch.tensor(scale, dtype=torch.float64).unsqueeze(-1) * q.tril
    reference = torch.distributions.MultivariateNormal(q.mean, root @ root.T)
    z = torch.randn(7, 4, 3, dtype=torch.float64)
    assert_close(q.log_prob(z), reference.log_prob(z))
    assert_close(q.expand([4]).log_prob(z), reference.log_prob(z))
    assert_close(q.variance, reference.variance)
    draws = q.rsample((20_000,))
    products = draws.unsqueeze(-1) * draws.unsqueeze(-2)
    moment = reference.covariance_matrix + q.mean.outer(q.mean)
    # Twelve statistics; a normal variable lies beyond 6 with probability 2e-9.
    assert float(t_statistics(draws, q.mean).abs().max()) < 6
    assert float(t_statistics(products, moment).abs().max()) < 6


def test_a_unit_that_does_not_move_is_a_point_mass() -> None:
    """Multiplicative noise on a state of 0: the other units have the density that they have."""
    scale = torch.tensor([0.6, 0.0, 0.2], dtype=torch.float64)
    q = triangular(scale, dist.Laplace(0.0, 1.0))
    z = q.rsample((5,))
    assert torch.equal(z[:, 1], q.mean[1].expand(5))
    others = Correlated(
        LocationScale(q.prior.standardized, q.prior.loc[::2], scale[::2]),
        q.shift[::2],
        q.tril[::2, ::2],
    )
    assert_close(q.log_prob(z), others.log_prob(z[:, ::2]))
    assert (q.log_prob(z + torch.tensor([0.0, 0.1, 0.0])) == -math.inf).all()


# -- where it starts -----------------------------------------------------------------------------


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", MODELS)
def test_an_untrained_guide_is_the_prior(kind: str, lengths: Any, kl_weight: float) -> None:
    """Equal loss and equal gradients, to the last digits, whatever weight the empty KL has."""
    model = words(MODELS[kind])
    x, y = batch()
    results = []
    for guide in (PriorGuide(model), SmoothingGuide(model, hidden_size=3, reads_state=True)):
        elbo = AnnealedELBO(kl_weight)
        results.append(
            value_and_gradients(
                model,
                lambda: elbo.differentiable_loss(model, guide, x, y, None, lengths),  # noqa: B023
            )
        )
    assert_close(results[1], results[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_of_the_guide_gets_a_gradient(kind: str) -> None:
    """Those of the correction from the start; the others once it has left 0."""
    model = words(MODELS[kind])
    guide = SmoothingGuide(model, hidden_size=3, reads_state=True)
    objective = Trace_ELBO()(model, guide)
    objective(*batch()).backward()
    assert all((p.grad != 0).any(-1).all() for p in guide.correction.parameters() if p.dim() > 1)
    nn.init.normal_(guide.correction.weight)
    guide.zero_grad()
    objective(*batch()).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in guide.parameters())


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_it_reads_the_state_before_and_the_present_and_future_words(lengths: Any) -> None:
    """With z_{t-1} held fixed, y_s moves the distribution of z_t if t <= s < the length."""
    model = LanguageModel(11, NoisyGRU(4, 5, noise=NORMAL, sites="timestep")).double()
    guide = SmoothingGuide(model, hidden_size=3, reads_state=True)
    nn.init.normal_(guide.correction.weight)
    x, y = batch()
    with torch.no_grad():
        states: Any = poutine.trace(guide).get_trace(x, y, None, lengths).nodes
    sites = [f"rnn.z_0_{t}" for t in range(6)]

    def means(y: Tensor, replaced: dict[str, Tensor]) -> Tensor:
        data = {name: states[name]["value"] for name in sites} | replaced
        with torch.no_grad(), poutine.condition(data=data):
            nodes: Any = poutine.trace(guide).get_trace(x, y, None, lengths).nodes
        return torch.cat([nodes[name]["fn"].mean.sum(-1) for name in sites])

    before = means(y, {})
    within = torch.ones(6, 3, dtype=torch.bool)
    if lengths is not None:
        within = torch.arange(6).unsqueeze(1) < lengths
    for step in range(6):
        other = y.clone()
        other[step, 1] = (other[step, 1] + 1) % 11
        expected = torch.zeros(6, 3, dtype=torch.bool)
        expected[: step + 1, 1] = within[step, 1]
        assert torch.equal((means(other, {}) != before) & within, expected & within)
    moved = means(y, {sites[2]: states[sites[2]]["value"] + 0.1}) != before
    assert moved[3].all() and not moved[[0, 1, 2, 4, 5]].any()


# -- where it can go -----------------------------------------------------------------------------


@torch.no_grad()
def posterior(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m (T, H), G (T, H, H) and C (T, H, H): z_t = h_t + γ (m_t + G_t h_t + C_t ε) given y."""
    rnn, emission = model.rnn, model.emission
    w, u, v = rnn.weight_hh_l0, rnn.weight_ih_l0, emission.weight
    tau, gamma = (-2 * emission.log_scale).exp(), rnn.spread[0]
    one = torch.eye(2, dtype=torch.float64)
    p, eta, found = torch.zeros_like(one), torch.zeros(2, dtype=torch.float64), []
    for t in reversed(range(len(x))):
        p = p + tau * v.T @ v
        eta = eta + tau * v.T @ (y[t].view(1) - emission.bias)
        cov = torch.linalg.inv(one / gamma**2 + p)
        found.append((cov @ eta / gamma, -cov @ p / gamma, torch.linalg.cholesky(cov) / gamma))
        schur = one / gamma**2 - cov / gamma**4
        eta = w.T @ (cov @ eta / gamma**2 - schur @ u @ x[t].view(1))
        p = w.T @ schur @ w
    m, g, c = (torch.stack(parts[::-1]) for parts in zip(*found))
    return m, g, c


def test_the_posterior_of_a_linear_gaussian_model_is_in_the_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the corrections worked out by hand, every draw's weight is p(y) exactly."""
    model, (x, y) = linear_gaussian("timestep"), series(8)
    guide = SmoothingGuide(model, reads_state=True)
    m, g, c = posterior(model, x, y)
    (head,) = guide.heads
    assert isinstance(head, StateHead)
    outer = torch.einsum("hk,kj->hjk", head.write, head.read).detach()  # U diag(·) W
    gate = torch.linalg.solve(outer.flatten(0, 1), g.flatten(1).T).T
    link = torch.zeros_like(gate)
    link[:, 0] = c[:, 1, 0] / outer[1, 0, 0]
    corrections = torch.cat([m, c.diagonal(dim1=-2, dim2=-1).log(), gate, link], -1)
    monkeypatch.setattr(guide, "_corrections", lambda *_: corrections.view(1, 8, 1, -1))
    exact = float(kalman(model, x, y).sum())
    weights = log_weights(model, guide, x, y, draws=20)
    assert_close(weights, torch.full_like(weights, exact), atol=1e-9, rtol=0)
    corrections[4, 0] += 0.01
    worse = log_weights(model, guide, x, y, draws=20)
    assert float(worse.std()) > 1e-3


@pytest.mark.slow
def test_a_trained_guide_closes_the_gap_to_the_exact_likelihood() -> None:
    """log p(y) − ELBO falls below 0.01 nats, where a guide that does not read z misses over one.

    The gap is the mean of 2,000 draws, whose standard error is then about 0.002.
    """
    model, (x, y) = linear_gaussian("timestep").requires_grad_(False), series(8)
    exact = float(kalman(model, x, y).sum())
    guide = SmoothingGuide(model, hidden_size=16, reads_state=True)
    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=2)
    few = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=2)
    assert exact + elbo.loss(model, guide, x, y) > 5
    objective = few(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.03, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        objective(x, y).backward()
        optimizer.step()
        schedule.step()
    gap = exact + elbo.loss(model, guide, x, y)
    assert gap < 0.01


# -- what it refuses, and what refuses it --------------------------------------------------------


def test_refusals() -> None:
    def model(**options: Any) -> LanguageModel:
        return LanguageModel(11, NoisyLSTM(4, 5, **options))

    steps = model(noise=NORMAL, sites="timestep")
    beta = MeanParameterized(lambda m, s: dist.Normal(m, s))
    for given, changed, message in (
        (model(noise=NORMAL), {}, "got an RNN with sites='sequence'; build it with sites='tim"),
        (model(noise=NORMAL, sites=None), {}, "got an RNN with sites=None"),
        (model(noise=beta), {}, "Additive or Multiplicative noise, got one whose sample sites"),
        (model(noise=None), {}, "nothing to correct"),
        (steps, {"rank": 0}, "rank must be at least 1"),
        (
            model(noise=NORMAL),
            {"reads_state": False, "rank": 2},
            "goes with reads_state=True, got rank=2",
        ),
    ):
        options: dict[str, Any] = {"reads_state": True, **changed}
        with pytest.raises(ValueError, match=message):
            SmoothingGuide(given, **options)
    x, y = random_tokens(11, 6, 3)
    guide = SmoothingGuide(steps, hidden_size=3, reads_state=True)
    with pytest.raises(ValueError, match="reads the observations; give y"):
        guide(x)
    with pytest.raises(ValueError, match="cannot take a SmoothingGuide with reads_state=True"):
        FilteringELBO(num_particles=2)(steps, guide)(x, y)


def test_it_trains_in_svi_and_gives_importance_weights() -> None:
    model = LanguageModel(11, NoisyRNN(4, 5, noise=NORMAL, spread=0.4, sites="timestep"))
    guide = SmoothingGuide(model, hidden_size=3, reads_state=True)
    x, y = random_tokens(11, 6, 3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x, y)
    assert float(guide.correction.weight.detach().abs().max()) > 0
    bound = RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=2)
    assert math.isfinite(bound.loss(model, guide, x, y))
