"""z has mean h and the stated spread, whatever the base, by three routes.

The closed form, SciPy's densities integrated by quadrature, and draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from noisin_pyro import Additive, Multiplicative, family
from tests.noise.bases import (
    BASES,
    DISCRETE,
    LEVEL,
    LIKEWISE,
    SPREAD,
    Mixture,
    each_base,
    each_kind,
    f64,
    quadrature,
    signed_spread,
    states,
)


@each_base
@each_kind
def test_mean_and_stddev(name: str, kind: Any) -> None:
    h = states()
    distribution = kind(BASES[name][0]()).distribution(h, f64(SPREAD))
    assert torch.equal(distribution.mean, h)
    torch.testing.assert_close(
        distribution.stddev, signed_spread(kind, h).abs(), rtol=1e-15, atol=0.0
    )


@each_base
def test_moments_are_scipys(name: str) -> None:
    base, reference = BASES[name][0](), BASES[name][1]
    noise = Additive(base)
    assert noise.mean == pytest.approx(float(reference.mean()), rel=1e-12, abs=1e-12)
    assert noise.stddev == pytest.approx(float(reference.std()), rel=1e-12)


@each_base
@each_kind
def test_density_has_mass_one_mean_h_and_the_stated_spread(name: str, kind: Any) -> None:
    """By quadrature, so of the density alone: no draw and no ``.mean`` takes part."""
    points, weights = quadrature(name)
    for h in states():
        scale = signed_spread(kind, h)
        if scale == 0:
            continue
        distribution = kind(BASES[name][0]()).distribution(h, f64(SPREAD))
        z = h + scale * points
        mass = distribution.log_prob(z).exp() * weights
        if name not in DISCRETE:
            mass = mass * scale.abs()
        assert mass.sum().item() == pytest.approx(1.0, abs=1e-10)
        assert (mass * z).sum().item() == pytest.approx(h.item(), abs=1e-9)
        assert (mass * (z - h) ** 2).sum().item() == pytest.approx(scale.item() ** 2, rel=1e-9)


@each_base
@each_kind
def test_log_prob_is_scipys(name: str, kind: Any) -> None:
    base, reference = BASES[name][0](), BASES[name][1]
    mean, stddev = float(reference.mean()), float(reference.std())
    if name in DISCRETE:
        x = np.arange(2.0)
        expected = reference.logpmf(x)
    else:
        low, high = (-8.0, 8.0) if isinstance(reference, Mixture) else reference.ppf([1e-6, 0.999])
        x = np.linspace(low, high, 41)
        expected = reference.logpdf(x) + math.log(stddev)
    epsilon = torch.from_numpy((x - mean) / stddev)
    noise = kind(base)
    ours = noise.standardized(epsilon).log_prob(epsilon)
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-9)
    for h in (-1.5, 0.7):
        scale = SPREAD if kind is Additive else SPREAD * h
        distribution = noise.distribution(f64(h), f64(SPREAD))
        jacobian = 0.0 if name in DISCRETE else math.log(abs(scale))
        ours = distribution.log_prob(h + scale * epsilon) + jacobian
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-9)


@each_base
@each_kind
def test_draws_have_mean_h_and_the_stated_spread(name: str, kind: Any) -> None:
    """Normal approximation at 6 standard errors, 2e-9 a comparison; 40,000 draws leave its tail
    wrong by a factor below 50, for the skewest (the squares of a log-normal)."""
    n = 40_000
    h = states()
    torch.manual_seed(20)
    z = kind(BASES[name][0]()).distribution(h, f64(SPREAD)).sample((n,))
    points, weights = quadrature(name)
    distribution = Additive(BASES[name][0]()).standardized(h)
    kurtosis = (distribution.log_prob(points).exp() * weights * points**4).sum()
    scale = signed_spread(kind, h).abs()
    assert (((z.mean(0) - h).abs()) <= 6 * scale / math.sqrt(n)).all()
    variance = (z - h).square().mean(0)
    assert ((variance - scale**2).abs() <= 6 * scale**2 * ((kurtosis - 1) / n).sqrt()).all()


@each_base
@each_kind
def test_sampler_follows_the_density(name: str, kind: Any) -> None:
    """Kolmogorov and Smirnov's test, or χ² on a lattice, each at level 1e-7."""
    reference = BASES[name][1]
    torch.manual_seed(21)
    h = f64(-1.5)
    z = kind(BASES[name][0]()).distribution(h, f64(SPREAD)).sample((20_000,))
    epsilon = ((z - h) / signed_spread(kind, h)).numpy()
    x = epsilon * float(reference.std()) + float(reference.mean())
    if name not in DISCRETE:
        assert stats.kstest(x, reference.cdf).pvalue > LEVEL
        return
    x = np.round(x)
    cells = np.arange(2) if name == "bernoulli" else np.arange(7)
    expected = reference.pmf(cells)
    expected[-1] += reference.sf(cells[-1])
    observed = [(x == cell).sum() for cell in cells[:-1]] + [(x >= cells[-1]).sum()]
    assert stats.chisquare(observed, expected * len(x)).pvalue > LEVEL


@pytest.mark.parametrize("name", LIKEWISE)
def test_a_location_scale_family_is_torchs_own_in_value_and_gradient(name: str) -> None:
    h = states().requires_grad_()
    spread = f64(SPREAD).requires_grad_()
    z = (states() + torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)).requires_grad_()
    ours = Additive(BASES[name][0]()).distribution(h, spread).log_prob(z)
    theirs = LIKEWISE[name](h, spread).log_prob(z)
    torch.testing.assert_close(ours, theirs)
    wanted = torch.autograd.grad(theirs.sum(), (h, spread, z), allow_unused=True)
    got = torch.autograd.grad(ours.sum(), (h, spread, z), allow_unused=True)
    for mine, other, leaf in zip(got, wanted, (h, spread, z)):
        other = torch.zeros_like(leaf) if other is None else other
        mine = torch.zeros_like(leaf) if mine is None else mine
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("keep", [0.25, 0.8])
def test_multiplicative_bernoulli_is_inverted_dropout(keep: float) -> None:
    """The values 0 and h/k with masses 1 − k and k, as ``F.dropout``; binomial test at 1e-7."""
    spread = f64(math.sqrt((1 - keep) / keep))
    h = states()
    noise = Multiplicative(dist.Bernoulli(f64(keep)))
    distribution = noise.distribution(h, spread)
    values = distribution.enumerate_support()
    torch.testing.assert_close(values, torch.stack([0 * h, h / keep]), rtol=1e-14, atol=1e-14)
    moving = h != 0
    masses = distribution.log_prob(values).exp()[:, moving]
    torch.testing.assert_close(masses[0], torch.full_like(masses[0], 1 - keep))
    torch.testing.assert_close(masses[1], torch.full_like(masses[1], keep))

    torch.manual_seed(24)
    state = torch.full((10_000,), 0.7, dtype=torch.float64)
    mult, _ = noise.affine(noise.standardized(state).expand([10_000]).sample(), spread)
    assert mult is not None
    ours = state * mult
    dropped = ours.abs() < 1e-12
    theirs = F.dropout(state, 1 - keep).unique()
    torch.testing.assert_close(ours[dropped], torch.zeros_like(ours[dropped]))
    torch.testing.assert_close(ours[~dropped], theirs[1].expand(int((~dropped).sum())))
    assert stats.binomtest(int((~dropped).sum()), 10_000, keep).pvalue > LEVEL


def test_named_bernoulli_keeps_what_its_spread_says() -> None:
    noise = family("bernoulli", "multiplicative", spread=0.5)
    z = noise.distribution(torch.tensor(2.0), torch.tensor(0.5)).enumerate_support()
    torch.testing.assert_close(z, torch.tensor([0.0, 2.0 / 0.8]))
