"""Rényi's bounds: of both kinds of sites alike, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, RenyiELBO
from torch import Tensor

from noisin_pyro import (
    Additive,
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    PriorGuide,
    SequenceModel,
    from_torch,
)
from tests.helpers import (
    LENGTHS,
    B,
    D,
    H,
    K,
    T,
    assert_all_close,
    batch,
    exact,
    random_walk,
    site_kinds,
)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_renyi_bounds_of_both_kinds_of_sites_agree(alpha: float, lengths: Any) -> None:
    """Value and gradients, with particles as one batch, on the same noise.

    The two kinds draw in another order, so both replay a given noise. The bound with eight
    particles differs from the mean of eight NOISIN terms, or the weights would not count.
    """
    # On the whole line, for what is replayed in the padding is nothing's draw.
    noise = [Multiplicative(dist.Gumbel(0.0, 1.0)), Additive(dist.Laplace(0.0, 1.0))]
    particles = 8
    model = LanguageModel(K, NoisyLSTM(D, H, 2, noise=noise, spread=0.5)).double()
    model.emission.weight.data.mul_(10.0)
    rnn = from_torch(model.rnn, noise=noise, spread=0.5, sites="timestep")
    steps = SequenceModel(model.embedding, rnn, model.emission)
    x, y = batch()
    epsilon = {
        f"rnn.noise_{layer}": distribution.standardized(torch.zeros((), dtype=torch.float64))
        .expand((particles, T, B, H))
        .sample()
        for layer, distribution in enumerate(noise)
    }

    def states() -> dict[str, Tensor]:
        with pyro.plate("particles", particles, dim=-3):
            conditioned = poutine.condition(model, data=epsilon)
            nodes = poutine.trace(conditioned).get_trace(x, y, None, lengths).nodes
        return {
            f"rnn.z_{layer}_{t}": nodes[f"rnn.z_{layer}"]["value"][:, t : t + 1]
            for layer in range(2)
            for t in range(T)
        }

    def bound(program: Any, draws: dict[str, Tensor]) -> list[Tensor]:
        given = poutine.Trace()
        for name, value in draws.items():
            given.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
        estimator = RenyiELBO(
            alpha, num_particles=particles, vectorize_particles=True, max_plate_nesting=2
        )
        pyro.clear_param_store()
        model.zero_grad()
        with poutine.replay(trace=given):
            loss = estimator.loss_and_grads(program, PriorGuide(program), x, y, None, lengths)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        return [torch.tensor(loss, dtype=torch.float64), *gradients]

    sequence, timestep = bound(model, epsilon), bound(steps, states())
    assert_all_close(timestep, sequence, 1e-10)
    terms = torch.stack([one_term(model, epsilon, s, x, y, lengths) for s in range(particles)])
    assert terms.shape == (particles, B)
    # RenyiELBO sums the bounds of the sequences, each with weights of its own
    power = 1 - alpha
    by_hand = ((power * terms).logsumexp(0) - math.log(particles)).sum() / power
    torch.testing.assert_close(-sequence[0], by_hand)
    assert float(by_hand - terms.mean(0).sum()) > 0.01


def one_term(model: Any, epsilon: Any, particle: int, x: Tensor, y: Tensor, lengths: Any) -> Tensor:
    """log p(y | z) of each sequence along one path."""
    noise = [value[particle] for value in epsilon.values()]
    z, _ = model.rnn(model.embedding(x), epsilon=noise, lengths=lengths)
    log_prob = model.emission(z).log_prob(y)
    if lengths is not None:
        log_prob = log_prob * (torch.arange(T).unsqueeze(1) < lengths)
    return log_prob.sum(0).detach()


@site_kinds
def test_renyi_elbo_is_the_importance_weighted_bound(sites: str) -> None:
    """NOISIN ≤ IW_K ≤ log p(y), which is exact here: a linear Gaussian state space.

    A bound whose weights were taken per step instead of per sequence would be off by 2; the
    tolerance is about seven standard errors.
    """
    model, steps = random_walk(sites), 3
    x = torch.zeros(steps, 2, 1, dtype=torch.float64)
    y = torch.tensor([[2.0, 0.3], [2.0, -0.5], [2.0, 0.1]], dtype=torch.float64).unsqueeze(-1)
    joint = exact(model, x[:, :1])
    log_evidence = float(sum(joint.log_evidence(y[:, column]) for column in range(2)))
    guide = PriorGuide(model)

    def bound(particles: int) -> float:
        options = {"num_particles": particles, "vectorize_particles": True}
        return -float(RenyiELBO(0.0, **options, max_plate_nesting=2).loss(model, guide, x, y))

    noisin = -NoisinELBO(10_000, vectorize_particles=True).loss(model, guide, x, y)
    tight = bound(10_000)
    assert tight == pytest.approx(log_evidence, abs=0.2)
    assert noisin < sum(bound(5) for _ in range(20)) / 20 < tight
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RenyiELBO(0.0, num_particles=2))
    assert math.isfinite(svi.step(x, y))
