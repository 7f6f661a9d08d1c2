"""Guides on the windows of a long text: ``AnnealedELBO(...)(model, guide).with_state``."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from torch import Tensor, nn
from torch.testing import assert_close

from noisin_pyro import (
    Additive,
    AnnealedELBO,
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    SmoothingGuide,
    detach_state,
)
from tests.helpers import assert_all_close, random_tokens, site_kinds

NORMAL = Additive(dist.Normal(0.0, 1.0))


def words(sites: Any = "timestep", layers: int = 1, spread: Any = 0.5) -> LanguageModel:
    rnn = NoisyLSTM(4, 5, layers, noise=NORMAL, spread=spread, sites=sites)
    return LanguageModel(11, rnn).double()


def start(layers: int = 1) -> Any:
    return tuple(torch.rand(layers, 3, 5, dtype=torch.float64) for _ in range(2))


def flat(state: Any) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


@site_kinds
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 2, 4])], ids=["whole", "padded"])
@pytest.mark.parametrize("particles", [1, 2])
def test_with_the_prior_guide_it_is_noisin(sites: str, lengths: Any, particles: int) -> None:
    """The same state, the same loss and gradients but for the rounding of a KL that cancels."""
    model, (x, y), state = words(sites, layers=2), random_tokens(11, 6, 3), start(2)
    guide, results = PriorGuide(model), []
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": particles > 1}
    annealed = AnnealedELBO(1.0, max_plate_nesting=2, **options)(model, guide)
    for objective in (NoisinELBO(**options)(model, guide), annealed):
        pyro.set_rng_seed(3)
        loss, final = objective.with_state(x, y, state, lengths)
        assert not list(pyro.get_param_store().keys())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss, gradients, flat(final)))
    (loss, gradients, final), (ours, our_gradients, our_final) = results
    assert all(torch.equal(a, b) for a, b in zip(our_final, final, strict=True))
    assert_close(ours, loss, rtol=1e-13, atol=0)
    assert_all_close(our_gradients, gradients, 1e-11)


def without_future(model: LanguageModel) -> SmoothingGuide:
    """A guide whose GRU forgets what comes after a step: it reads (x_t, y_t) and z_{t-1}."""
    guide = SmoothingGuide(model, hidden_size=3, reads_state=True).double()
    nn.init.normal_(guide.correction.weight, std=0.3)
    reader: Any = guide.reader
    with torch.no_grad():
        reader.weight_hh_l0.zero_()
        reader.bias_ih_l0[3:6] = -1e3  # the share of the state before
    return guide


@pytest.mark.parametrize("kind", [NoisinELBO, AnnealedELBO])
def test_particles_in_turn_hand_on_the_state_of_the_last_one(kind: Any) -> None:
    """Three particles are three runs of one, on the same draws."""
    noise = Additive(dist.Normal(0.0, 1.0))
    model = LanguageModel(7, NoisyRNN(3, 4, noise=noise, spread=0.5)).double()
    x, y = torch.randint(7, (2, 5, 3))
    guide = PriorGuide(model)
    torch.manual_seed(0)
    loss, state = kind(num_particles=3)(model, guide).with_state(x, y)
    torch.manual_seed(0)
    runs = [kind()(model, guide).with_state(x, y) for _ in range(3)]
    assert torch.equal(state, runs[-1][1]) and not torch.equal(state, runs[0][1])
    assert_close(loss, torch.stack([run[0] for run in runs]).mean())


@pytest.mark.parametrize("kind", ["prior", "reads state", "reads the future"])
def test_two_windows_are_one_sequence(kind: str) -> None:
    """Value, state and gradients, at the same noise, where the guide does not read ahead."""
    model = words()
    guide: Any = PriorGuide(model)
    if kind != "prior":
        guide = without_future(model)
        if kind == "reads the future":
            nn.init.normal_(guide.reader.weight_hh_l0)
            nn.init.normal_(guide.reader.bias_ih_l0)
    objective = AnnealedELBO(0.7)(model, guide)
    # How the future would be read is the one thing that a window cuts off, in gradient too.
    leaves = [p for name, p in objective.named_parameters() if name != "guide.reader.weight_hh_l0"]
    x, y = random_tokens(11, 8, 3)
    pyro.set_rng_seed(5)
    whole, final = objective.with_state(x, y, start())
    pyro.set_rng_seed(5)
    state = start()
    losses = []
    for window in (slice(0, 5), slice(5, 8)):
        loss, state = objective.with_state(x[window], y[window], state)
        losses.append(loss)
    parts = torch.stack(losses).sum()
    theirs, ours = (
        torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        for loss in (whole, parts)
    )
    close = torch.allclose(whole, parts, rtol=1e-12, atol=0)
    assert close == (kind != "reads the future")
    if close:
        assert_all_close(flat(state), flat(final), 1e-12)
        assert_all_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("reads_state", [False, True])
def test_a_learned_guide_gains_on_the_windows_of_a_text(reads_state: bool) -> None:
    """Only the guide is trained; NOISIN is where it starts, and what it must beat on all windows.

    Means of 8 passes with 32 particles each; the gain is over six standard errors.
    """
    noise = Multiplicative(dist.Normal(0.0, 1.0))
    sites: Any = "timestep" if reads_state else "sequence"
    model = LanguageModel(5, NoisyRNN(4, 6, noise=noise, spread=1.0, sites=sites))
    nn.init.normal_(model.emission.weight, std=2.0)
    x, y = random_tokens(5, 12, 6)
    guide = SmoothingGuide(model, hidden_size=16, reads_state=reads_state)

    def passed(particles: int, optimizer: Any = None) -> float:
        """The loss of the two windows, averaged over particles."""
        objective = AnnealedELBO(
            num_particles=particles, vectorize_particles=True, max_plate_nesting=2
        )(model, guide)
        state, total = None, 0.0
        for window in (slice(0, 6), slice(6, 12)):
            loss, state = objective.with_state(x[window], y[window], state)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            state = detach_state(state)
            total += float(loss.detach())
        return total

    before = torch.tensor([passed(32) for _ in range(8)])
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.03)
    for _ in range(60):
        passed(8, optimizer)
    after = torch.tensor([passed(32) for _ in range(8)])
    error = (before.var() + after.var()).sqrt() / 8**0.5
    assert float(before.mean() - after.mean()) > 6 * float(error)


def test_the_kl_of_weights_is_weighed() -> None:
    """Counted once over N windows at β = 1/N, beside the empty KL of the noise."""
    model = words("sequence")
    prior = dist.Normal(torch.zeros(11, dtype=torch.float64), 1.0).to_event(1)
    model.emission.bias = PyroSample(prior)
    guide = PriorGuide(model, rest=AutoNormal)
    x, y = random_tokens(11, 6, 3)
    guide(x, y)  # makes the automatic guide's parameters
    losses = []
    for weight in (0.0, 0.5, 1.0):
        pyro.set_rng_seed(2)
        loss, _ = AnnealedELBO(weight)(model, guide).with_state(x, y)
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-12)
    assert abs(losses[2] - losses[0]) > 0.1


def test_it_carries_particles_and_refuses_a_model_without_state() -> None:
    model = LanguageModel(11, NoisyGRU(4, 5, noise=NORMAL))
    guide = SmoothingGuide(model, hidden_size=3)
    elbo = AnnealedELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=2)
    objective = elbo(model, guide)
    x, y = random_tokens(11, 6, 3)
    _, state = objective.with_state(x, y)
    loss, state = objective.with_state(x, y, detach_state(state))
    assert state.shape == (4, 1, 3, 5) and loss.isfinite()

    class Plain(nn.Module):
        def forward(self) -> None:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    class Empty(nn.Module):
        def forward(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"returns \(y, state\).*got one that returns NoneType"):
        AnnealedELBO()(Plain(), Empty()).with_state()
