"""Noise: z has mean h and the stated spread, whatever the family, by three routes.

The closed form, SciPy's densities integrated by quadrature, and draws. The bases hold float64
parameters, so that what should be exact is.

False alarms: the statistical tests of this file make fewer than 300 comparisons, each at a
level of at most 1e-7, so all of them together fail for no reason less than 3 times in 100,000
draws of their seeds. Seeds are fixed, so a failure repeats.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.distributions import biject_to, constraints

from noisin_pyro.noise.affine import Additive, Multiplicative
from noisin_pyro.noise.base import Noise, Range
from noisin_pyro.noise.families import FAMILIES, family
from noisin_pyro.noise.mean_parameterized import MeanParameterized
from noisin_pyro.noise.standardized import (
    LocationScale,
    Standardized,
    bounds,
    moments,
    moved,
    tensors,
)

INF = math.inf
LEVEL = 1e-7  # of one comparison
SPREAD = 0.6
STATES = (-1.5, -0.2, 0.0, 0.7, 3.0)


def f64(*values: float) -> Any:
    numbers = [torch.tensor(value, dtype=torch.float64) for value in values]
    return numbers[0] if len(numbers) == 1 else numbers


class Mixture:
    """0.3 N(−2, 0.5²) + 0.7 N(1, 1²), with the part of SciPy's interface used here."""

    parts = ((0.3, stats.norm(-2.0, 0.5)), (0.7, stats.norm(1.0, 1.0)))

    def pdf(self, x: Any) -> Any:
        return sum(weight * part.pdf(x) for weight, part in self.parts)

    def logpdf(self, x: Any) -> Any:
        return np.log(self.pdf(x))

    def cdf(self, x: Any) -> Any:
        return sum(weight * part.cdf(x) for weight, part in self.parts)

    def moment(self, order: int) -> float:
        return float(sum(weight * part.moment(order) for weight, part in self.parts))

    def mean(self) -> float:
        return self.moment(1)

    def std(self) -> float:
        return math.sqrt(self.moment(2) - self.moment(1) ** 2)


def mixture() -> Any:
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    stddevs = torch.tensor([0.5, 1.0], dtype=torch.float64)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, stddevs))


#: The base, and an account of it that owes nothing to torch.
BASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "normal": (lambda: dist.Normal(*f64(0.4, 1.7)), stats.norm(0.4, 1.7)),
    "laplace": (lambda: dist.Laplace(*f64(-1.0, 0.8)), stats.laplace(-1.0, 0.8)),
    "logistic": (lambda: dist.Logistic(*f64(0.3, 2.0)), stats.logistic(0.3, 2.0)),
    "gumbel": (lambda: dist.Gumbel(*f64(1.0, 0.7)), stats.gumbel_r(1.0, 0.7)),
    "gamma": (lambda: dist.Gamma(*f64(2.5, 3.0)), stats.gamma(2.5, scale=1 / 3)),
    "beta": (lambda: dist.Beta(*f64(2.0, 3.5)), stats.beta(2.0, 3.5)),
    "bernoulli": (lambda: dist.Bernoulli(f64(0.8)), stats.bernoulli(0.8)),
    "poisson": (lambda: dist.Poisson(f64(1.3)), stats.poisson(1.3)),
    "exponential": (lambda: dist.Exponential(f64(2.0)), stats.expon(scale=0.5)),
    "uniform": (lambda: dist.Uniform(*f64(-1.0, 4.0)), stats.uniform(-1.0, 5.0)),
    "chi2": (lambda: dist.Chi2(f64(5.0)), stats.chi2(5.0)),
    "lognormal": (lambda: dist.LogNormal(*f64(0.2, 0.5)), stats.lognorm(0.5, scale=math.exp(0.2))),
    "mixture": (mixture, Mixture()),
}
DISCRETE = ("bernoulli", "poisson")
KINDS = (Additive, Multiplicative)

each_base = pytest.mark.parametrize("name", BASES)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def states() -> Tensor:
    return torch.tensor(STATES, dtype=torch.float64)


def signed_spread(kind: type[Noise], h: Tensor) -> Tensor:
    return torch.full_like(h, SPREAD) if kind is Additive else SPREAD * h


def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Points ε and weights whose weighted sum integrates against p(ε), by SciPy's μ and σ.

    The lattice itself if the base is discrete; otherwise Gauss and Legendre's 20 points in each
    of some 140 panels, which begin and end at the edges of the support and meet where Laplace's
    density has its kink, and reach far into the tail of the log-normal.
    """
    reference = BASES[name][1]
    mean, stddev = float(reference.mean()), float(reference.std())
    if name in DISCRETE:
        x = np.arange(2.0 if name == "bernoulli" else 60.0)
        weight = np.ones_like(x)
    else:
        low, high = (-INF, INF) if name == "mixture" else reference.support()
        low, end = max(low, mean - 30 * stddev), min(high, mean + 20 * stddev)
        tail = mean + stddev * np.geomspace(20, 200, 21)[1:] if end < high else []
        edges = np.concatenate([np.linspace(low, mean, 61), np.linspace(mean, end, 61)[1:], tail])
        node, node_weight = np.polynomial.legendre.leggauss(20)
        half = np.diff(edges)[:, None] / 2
        x = (edges[:-1, None] + half * (node + 1)).ravel()
        weight = (half * node_weight).ravel() / stddev
    return torch.from_numpy((x - mean) / stddev), torch.from_numpy(weight)


# ---------------------------------------------------------------- the law of z given h


@each_base
@each_kind
def test_mean_and_stddev(name: str, kind: Any) -> None:
    h = states()
    law = kind(BASES[name][0]()).distribution(h, f64(SPREAD))
    assert torch.equal(law.mean, h)
    torch.testing.assert_close(law.stddev, signed_spread(kind, h).abs(), rtol=1e-15, atol=0.0)


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
        law = kind(BASES[name][0]()).distribution(h, f64(SPREAD))
        z = h + scale * points
        mass = law.log_prob(z).exp() * weights
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
        law = noise.distribution(f64(h), f64(SPREAD))
        jacobian = 0.0 if name in DISCRETE else math.log(abs(scale))
        ours = law.log_prob(h + scale * epsilon) + jacobian
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
    law = Additive(BASES[name][0]()).standardized(h)
    kurtosis = (law.log_prob(points).exp() * weights * points**4).sum()
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


E = 0.57721566490153286
LIKEWISE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "normal": lambda h, s: dist.Normal(h, s),
    "laplace": lambda h, s: dist.Laplace(h, s / math.sqrt(2)),
    "logistic": lambda h, s: dist.Logistic(h, s * math.sqrt(3) / math.pi),
    "gumbel": lambda h, s: dist.Gumbel(
        h - s * E * math.sqrt(6) / math.pi, s * math.sqrt(6) / math.pi
    ),
    "uniform": lambda h, s: dist.Uniform(h - s * math.sqrt(3), h + s * math.sqrt(3)),
}


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


# ---------------------------------------------------------------- gradients


@each_base
@each_kind
def test_gradient_is_pathwise(name: str, kind: Any) -> None:
    """∂z/∂h is 1 or 1 + γε, ∂z/∂γ is ε or hε: the original RNN's gradient, and γ's."""
    noise = kind(BASES[name][0]())
    h, spread = states().requires_grad_(), f64(SPREAD).requires_grad_()
    law = noise.distribution(h, spread)
    assert law.has_rsample
    torch.manual_seed(22)
    z = law.rsample((3,))
    torch.manual_seed(22)
    epsilon = noise.standardized(h).expand([3, 5]).rsample()
    dh, dspread = torch.autograd.grad(z.sum(), (h, spread))
    if kind is Additive:
        expected = h + SPREAD * epsilon, torch.full_like(h, 3.0), epsilon.sum()
    else:
        factor = 1 + SPREAD * epsilon
        expected = h * factor, factor.sum(0), (h * epsilon).sum()
    torch.testing.assert_close((z, dh, dspread), expected, rtol=1e-13, atol=1e-13)
    assert epsilon.std() > 0.1  # or the comparison would hold for no noise at all


@each_kind
def test_gradient_of_an_expectation_over_a_discrete_base(kind: Any) -> None:
    """E[z²] = h² + γ² or h²(1 + γ²), by enumeration: the masses carry no gradient."""
    h, spread = f64(-1.5).requires_grad_(), f64(SPREAD).requires_grad_()
    law = kind(BASES["bernoulli"][0]()).distribution(h, spread)
    z = law.enumerate_support()
    log_mass = law.log_prob(z)
    dh, dspread = torch.autograd.grad((log_mass.exp() * z**2).sum(), (h, spread), retain_graph=True)
    if kind is Additive:
        expected = 2 * h, 2 * spread
    else:
        expected = 2 * h * (1 + spread**2), 2 * spread * h**2
    torch.testing.assert_close((dh, dspread), expected)
    for gradient in torch.autograd.grad(log_mass.sum(), (h, spread)):
        assert gradient == 0


@each_base
@each_kind
def test_affine_is_the_distribution_of_a_sequence(name: str, kind: Any) -> None:
    """What the RNN multiplies and adds is the same draw as :meth:`distribution` makes."""
    noise, h, spread = kind(BASES[name][0]()), states(), f64(SPREAD)
    torch.manual_seed(23)
    z = noise.distribution(h, spread).sample()
    torch.manual_seed(23)
    epsilon = noise.standardized(h).expand([5]).sample()
    mult, add = noise.affine(epsilon, spread)
    assert (mult is None) == (kind is Additive) and (add is None) == (kind is Multiplicative)
    again = h * (1.0 if mult is None else mult) + (0.0 if add is None else add)
    torch.testing.assert_close(again, z, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- inverted dropout


@pytest.mark.parametrize("keep", [0.25, 0.8])
def test_multiplicative_bernoulli_is_inverted_dropout(keep: float) -> None:
    """The values 0 and h/k with masses 1 − k and k, as ``F.dropout``; binomial test at 1e-7."""
    spread = f64(math.sqrt((1 - keep) / keep))
    h = states()
    noise = Multiplicative(dist.Bernoulli(f64(keep)))
    law = noise.distribution(h, spread)
    values = law.enumerate_support()
    torch.testing.assert_close(values, torch.stack([0 * h, h / keep]), rtol=1e-14, atol=1e-14)
    moving = h != 0
    masses = law.log_prob(values).exp()[:, moving]
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


# ---------------------------------------------------------------- a state of zero


@each_base
def test_multiplicative_noise_leaves_a_state_of_zero(name: str) -> None:
    law = Multiplicative(BASES[name][0]()).distribution(torch.zeros(4).double(), f64(SPREAD))
    z = law.sample()
    assert torch.equal(z, torch.zeros(4).double())
    assert torch.equal(law.log_prob(z), torch.zeros(4).double())
    law._validate_args = False
    assert (law.log_prob(z + 1e-6) == -INF).all()


@each_base
def test_a_state_of_zero_among_others_leaves_their_gradients_finite(name: str) -> None:
    h, spread = states().requires_grad_(), f64(SPREAD).requires_grad_()
    law = Multiplicative(BASES[name][0]()).distribution(h, spread)
    z = law.sample()
    gradients = torch.autograd.grad(law.log_prob(z).sum(), (h, spread), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


# ---------------------------------------------------------------- rounding and bad values


@each_base
@given(
    h=st.floats(-300, 300, width=32),
    spread=st.floats(0.0625, 8, width=32),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=6, deadline=None)
def test_no_draw_is_rounded_out_of_its_own_law(
    name: str, h: float, spread: float, kind: Any, seed: int
) -> None:
    """In float32 z = h + γε keeps few digits of ε; its density must not become 0 for that."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        law = kind(BASES[name][0]()).distribution(
            torch.full((500,), h, dtype=torch.float32), torch.tensor(spread)
        )
        assert law.log_prob(law.sample()).isfinite().all()  # and the validation lets it pass
        epsilon = law.standardized.expand([500])
        assert epsilon.log_prob(epsilon.sample()).isfinite().all()


@pytest.mark.parametrize("name", ["exponential", "uniform", "beta", "poisson"])
def test_the_edge_of_the_support_belongs_to_it(name: str) -> None:
    epsilon = Additive(BASES[name][0]()).standardized(torch.zeros(()))
    ends = torch.tensor([end for end in epsilon.ends if math.isfinite(end)])
    assert epsilon.log_prob(ends).isfinite().all()
    mean, stddev = moments(BASES[name][0]())
    edge = torch.tensor((bounds(BASES[name][0]().support)[0] - mean) / stddev)
    beside = torch.nextafter(edge, torch.tensor(-INF))  # by one rounding
    assert epsilon.log_prob(torch.stack([edge, beside])).isfinite().all()
    z = LocationScale(epsilon, torch.tensor(50.0), torch.tensor(0.1))
    assert z.log_prob(50 + 0.1 * ends).isfinite().all()


@pytest.mark.parametrize("name, ends", [("exponential", 1), ("gamma", 1), ("uniform", 2)])
def test_beyond_the_edge_lies_nothing(name: str, ends: int) -> None:
    law = Standardized(*_standard(name), validate_args=False)
    finite = [end for end in law.ends if math.isfinite(end)]
    assert len(finite) == ends
    for end in finite:
        assert law.log_prob(f64(end + math.copysign(1e-9, end))) == -INF
        assert law.log_prob(f64(end - math.copysign(1e-9, end))).isfinite()
    loud = Standardized(*_standard(name), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        loud.log_prob(f64(finite[0] - 1.0))


@pytest.mark.parametrize("name", DISCRETE)
def test_between_the_points_of_a_lattice_lies_nothing(name: str) -> None:
    law = Standardized(*_standard(name))
    points = (torch.arange(2.0).double() - law.loc) / law.std
    assert law.log_prob(points).isfinite().all()
    assert (law.log_prob(points[:1] + torch.tensor([1e-6, 0.5])) == -INF).all()
    z = LocationScale(law, f64(1.0), f64(-0.5))
    assert z.log_prob(1.0 - 0.5 * points).isfinite().all()
    assert z.log_prob(1.0 - 0.5 * points[0] - 1e-6) == -INF
    assert z.log_prob(f64(1.0) - 0.5 * (points[0] - 1 / law.std)) == -INF  # x = −1


@each_base
def test_nan_stays_nan(name: str) -> None:
    law = Standardized(*_standard(name), validate_args=False)
    value = torch.tensor([math.nan, 0.0]).double()
    assert law.log_prob(value)[0].isnan()
    z = LocationScale(law, value, f64(1.0), validate_args=False)
    assert z.log_prob(torch.zeros(2).double())[0].isnan()


def _standard(name: str) -> tuple[Any, float, float]:
    base = BASES[name][0]()
    return base, *moments(base)


def test_an_infinite_draw_of_the_base_becomes_its_mean() -> None:
    """Pyro's Logistic makes one of every 2²⁴ float32 draws infinite: a uniform draw of 0."""

    class Unlucky(dist.Logistic):  # type: ignore[misc]
        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            return torch.tensor([-INF, INF, 1.0]).expand(sample_shape)

    z = Additive(Unlucky(0.5, 1.0)).distribution(torch.zeros(3), torch.tensor(1.0)).sample()
    torch.testing.assert_close(z[:2], torch.zeros(2))
    assert z[2] > 0


def test_a_draw_is_never_written_into_the_base() -> None:
    class Constant(dist.Normal):  # type: ignore[misc]
        held = torch.tensor(3.0)

        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            return self.held.expand(sample_shape)

    epsilon = Standardized(Constant(1.0, 2.0), 1.0, 2.0)
    assert torch.equal(epsilon.expand([4]).sample(), torch.ones(4))
    assert Constant.held == 3.0


@each_base
@each_kind
def test_nothing_on_the_way_waits_for_the_device(
    name: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ``bool(x.any())``, no ``.item()``: neither drawing nor weighing reads a number."""

    def waits(*_: Any) -> None:
        raise AssertionError("waits for the device")

    h = states()
    scale = signed_spread(kind, h)
    epsilon = kind(BASES[name][0]()).standardized(h).expand([5])
    epsilon._validate_args = False
    for method in ("__bool__", "__int__", "__float__", "item", "tolist"):
        monkeypatch.setattr(Tensor, method, waits)
    law = LocationScale(epsilon, h, scale, validate_args=False)
    law.log_prob(law.rsample())
    epsilon.log_prob(epsilon.rsample())
    with pytest.raises(AssertionError, match="waits"):
        bool(h.any())


# ---------------------------------------------------------------- any distribution at all


def test_torchs_own_distributions_serve_as_well() -> None:
    z = Additive(td.Laplace(0.0, 1.0)).distribution(torch.zeros(()), torch.tensor(0.3))
    assert z.log_prob(torch.tensor(0.1)) == Additive(dist.Laplace(0.0, 1.0)).distribution(
        torch.zeros(()), torch.tensor(0.3)
    ).log_prob(torch.tensor(0.1))


def logistic_recipe() -> Any:
    """The logistic distribution as torch's documentation builds it; it knows no moments."""
    return td.TransformedDistribution(
        td.Uniform(0.0, 1.0), [td.SigmoidTransform().inv, td.AffineTransform(0.5, 2.0)]
    )


def test_a_transformed_base_takes_its_moments_from_the_caller() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "TransformedDistribution() knows no mean and variance of its own; "
            "give them as Additive(base, mean=..., stddev=...)"
        ),
    ):
        Additive(logistic_recipe())
    stddev = 2 * math.pi / math.sqrt(3)
    noise = Additive(logistic_recipe(), mean=0.5, stddev=stddev)
    assert (noise.mean, noise.stddev) == (0.5, stddev)
    law = noise.distribution(states(), f64(SPREAD))
    z = states() + 0.3
    expected = LIKEWISE["logistic"](states(), f64(SPREAD)).log_prob(z)
    torch.testing.assert_close(law.log_prob(z), expected)
    assert law.sample().dtype == torch.float64


def test_a_categorical_base_takes_its_moments_from_the_caller() -> None:
    base = dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))
    with pytest.raises(ValueError, match="knows no mean and variance of its own; give them as Mul"):
        Multiplicative(base)
    stddev = math.sqrt(0.3 + 2.0 - 1.69)
    law = Multiplicative(base, mean=1.3, stddev=stddev).distribution(f64(2.0), f64(SPREAD))
    z = law.enumerate_support()
    torch.testing.assert_close(
        z, 2 * (1 + SPREAD * (torch.arange(3.0).double() - 1.3) / stddev), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(
        law.log_prob(z).exp(), f64(0.2, 0.3, 0.5)[0].new_tensor([0.2, 0.3, 0.5]), check_dtype=False
    )
    assert law.sample((3,)).dtype == torch.float64


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_draws_have_the_states_dtype(name: str, dtype: torch.dtype) -> None:
    h = torch.tensor([-0.5, 0.0, 2.0], dtype=dtype)
    for injection in ("additive", "multiplicative"):
        law = family(name, injection, 0.5).distribution(h, h.new_tensor(0.5))  # type: ignore[arg-type]
        z = law.rsample((4,))
        assert z.dtype == dtype and z.shape == (4, 3)
        assert law.log_prob(z).isfinite().all()
        assert law.standardized.mean.dtype == law.standardized.variance.dtype == dtype


@pytest.mark.parametrize(
    "base",
    [dist.Beta(2.0, 2.0), dist.Gumbel(0.0, 1.0), mixture(), logistic_recipe(), dist.Chi2(3.0)],
    ids=lambda base: type(base).__name__,
)
def test_moving_a_base_moves_all_of_it_and_leaves_the_original(base: Any) -> None:
    before = [tensor.dtype for tensor in tensors(base)]
    other = moved(base, torch.float64, torch.device("cpu"))
    assert other.sample((3,)).dtype == torch.float64
    assert other.log_prob(f64(0.4)).dtype == torch.float64
    assert all(t.dtype == torch.float64 for t in tensors(other) if t.is_floating_point())
    assert [tensor.dtype for tensor in tensors(base)] == before
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = base.sample()
    torch.testing.assert_close(other.log_prob(value).float(), base.log_prob(value).float())


@pytest.mark.parametrize(
    "base, expected",
    [
        (dist.Normal(0.0, 1.0), (-INF, INF)),
        (dist.Gamma(1.0, 1.0), (0.0, INF)),
        (dist.Uniform(-1.0, 2.0), (-1.0, 2.0)),
        (dist.Bernoulli(0.3), (0.0, 1.0)),
        (dist.Binomial(7, 0.3), (0.0, 7.0)),
        (
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)),
                dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 6.0])),
            ),
            (0.0, 6.0),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounds(base: Any, expected: tuple[float, float]) -> None:
    assert bounds(base.support) == expected


def test_a_mixture_has_the_density_of_each_of_its_components() -> None:
    """torch's own validation wants a value in the support of all of them."""
    base = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Uniform(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 6.0])),
    )
    noise = Additive(base)
    law = noise.standardized(torch.zeros(()))
    value = (torch.tensor([0.5, 5.5, 3.0]) - 3.0) / law.std
    expected = torch.tensor([0.5 * law.std, 0.5 * law.std, 0.0])
    torch.testing.assert_close(law.log_prob(value).exp(), expected)


# ---------------------------------------------------------------- as a distribution


@each_base
def test_shapes(name: str) -> None:
    noise = Additive(BASES[name][0]())
    epsilon = noise.standardized(states())
    assert epsilon.batch_shape == epsilon.event_shape == ()
    wide = epsilon.expand([4, 3])
    assert wide.sample((2,)).shape == (2, 4, 3)
    assert wide.log_prob(wide.sample()).shape == (4, 3)
    assert wide.log_prob(epsilon.sample()).shape == (4, 3)
    assert wide.to_event(1).log_prob(wide.sample()).shape == (4,)
    assert torch.equal(wide.mean, torch.zeros(4, 3).double())
    assert torch.equal(wide.variance, torch.ones(4, 3).double())
    law = noise.distribution(states(), torch.rand(2, 1, 1).double() + 0.1)
    assert law.batch_shape == (2, 1, 5)
    wider = law.expand([3, 2, 4, 5])
    assert wider.sample((6,)).shape == (6, 3, 2, 4, 5)
    assert wider.log_prob(law.sample()).shape == (3, 2, 4, 5)


def test_enumeration() -> None:
    epsilon = Additive(dist.Bernoulli(f64(0.5))).standardized(states()).expand([3, 5])
    assert epsilon.has_enumerate_support
    assert epsilon.enumerate_support().shape == (2, 3, 5)
    assert epsilon.enumerate_support(expand=False).flatten().tolist() == [-1.0, 1.0]
    assert epsilon.enumerate_support(expand=False).shape == (2, 1, 1)
    law = Additive(dist.Bernoulli(f64(0.5))).distribution(states(), f64(SPREAD))
    torch.testing.assert_close(
        law.enumerate_support(), torch.stack([states() - SPREAD, states() + SPREAD])
    )
    assert not Additive(dist.Poisson(1.0)).standardized(states()).has_enumerate_support


@pytest.mark.parametrize("name", ["normal", "gamma", "beta", "uniform"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_support_is_where_the_density_is(name: str, sign: float) -> None:
    """What HMC and automatic guides use: every unconstrained number maps into the law."""
    h = sign * torch.tensor([0.5, 2.0, 7.0])
    for noise in (Additive(BASES[name][0]()), Multiplicative(BASES[name][0]())):
        law = noise.distribution(h, torch.tensor(SPREAD))
        unconstrained = torch.linspace(-6, 6, 25).unsqueeze(-1)
        z = biject_to(law.support)(unconstrained)
        assert law.log_prob(z).isfinite().all()
        low = getattr(law.support, "lower_bound", h)
        high = torch.nextafter(getattr(law.support, "upper_bound", h), torch.tensor(-INF))
        assert law.log_prob(torch.stack([low, high])).isfinite().all()
        epsilon = biject_to(law.standardized.support)(unconstrained)
        assert law.standardized.log_prob(epsilon).isfinite().all()
    if name == "uniform":
        expected = h - SPREAD * h.abs() * math.sqrt(3), h + SPREAD * h.abs() * math.sqrt(3)
        torch.testing.assert_close((law.support.lower_bound, law.support.upper_bound), expected)


def test_the_support_of_mixed_signs_is_the_line() -> None:
    law = Multiplicative(dist.Gamma(2.0, 1.0)).distribution(states().float(), torch.tensor(SPREAD))
    assert law.support is constraints.real
    z = states().float() * (1 - 2 * SPREAD)  # ε = −2 lies below −√2
    assert (law.log_prob(z)[states() != 0] == -INF).all()


def test_repr() -> None:
    assert repr(Additive(dist.Normal(0.0, 1.0))) == (
        "Additive(base=Normal(loc: 0.0, scale: 1.0), mean=0.0, stddev=1.0)"
    )
    epsilon = Additive(dist.Laplace(0.0, 1.0)).standardized(torch.zeros(())).expand([3])
    assert repr(epsilon) == "Standardized(Laplace(loc: 0.0, scale: 1.0), batch_shape=(3,))"


# ---------------------------------------------------------------- as a value


@each_kind
def test_a_noise_is_a_frozen_value(kind: Any) -> None:
    base = dist.Laplace(0.0, 1.0)
    noise = kind(base)
    assert noise == kind(base) and hash(noise) == hash(kind(base))
    assert noise != kind(dist.Laplace(0.0, 1.0))  # torch's distributions have no equality
    other = Additive if kind is Multiplicative else Multiplicative
    assert noise != other(base)
    noise.standardized(torch.zeros(()))
    assert noise == kind(base)
    with pytest.raises(dataclasses.FrozenInstanceError):
        noise.base = dist.Normal(0.0, 1.0)
    assert dataclasses.replace(noise) == noise
    assert copy.deepcopy(noise) is noise


@pytest.mark.parametrize("name", [name for name in BASES if name != "mixture"])
@each_kind
def test_pickle(name: str, kind: Any) -> None:
    noise = kind(BASES[name][0]())
    h = states()
    size = len(pickle.dumps(noise))
    noise.standardized(h)
    assert len(pickle.dumps(noise)) == size  # the copy made for this dtype stays here
    again = pickle.loads(pickle.dumps(noise))
    assert type(again) is kind and (again.mean, again.stddev) == (noise.mean, noise.stddev)
    z = noise.distribution(h, f64(SPREAD)).sample()
    law, same = noise.distribution(h, f64(SPREAD)), again.distribution(h, f64(SPREAD))
    assert torch.equal(law.log_prob(z), same.log_prob(z))


def test_the_base_is_moved_once_for_each_dtype() -> None:
    noise = Additive(dist.Gamma(2.0, 1.0))
    assert noise.standardized(torch.zeros(2)) is noise.standardized(torch.ones(3))
    assert noise.standardized(torch.zeros(2)) is not noise.standardized(torch.zeros(2).double())


def test_replacing_the_base_alone_is_refused_rather_than_biased() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "mean=0.0 contradicts Exponential(rate: 2.0), whose mean is 0.5; leave it out"
        ),
    ):
        dataclasses.replace(Additive(dist.Normal(0.0, 1.0)), base=dist.Exponential(2.0))


# ---------------------------------------------------------------- errors


@each_kind
@pytest.mark.parametrize(
    "base, error, message",
    [
        (
            "normal",
            TypeError,
            "{} needs a distribution such as dist.Normal(0.0, 1.0), got 'normal'",
        ),
        (
            dist.Normal,
            TypeError,
            "{} needs a distribution such as dist.Normal(0.0, 1.0), got <class",
        ),
        (
            dist.Cauchy(0.0, 1.0),
            ValueError,
            "{} needs a base with finite mean and a finite, positive variance, got "
            "Cauchy(loc: 0.0, scale: 1.0) with mean nan and standard deviation inf; "
            "choose another base",
        ),
        (
            dist.StudentT(1.5),
            ValueError,
            "with mean 0.0 and standard deviation inf; choose another base",
        ),
        (
            dist.Delta(torch.tensor(1.0)),
            ValueError,
            "with mean 1.0 and standard deviation 0.0; choose another base",
        ),
        (
            dist.Normal(torch.zeros(3), 1.0),
            ValueError,
            "{} needs a univariate base, got Normal(loc: torch.Size([3]), scale: torch.Size([3])) "
            "with batch shape (3,) and event shape (); give scalar parameters, one draw is made "
            "per hidden unit",
        ),
        (
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            ValueError,
            "with batch shape () and event shape (2,); give scalar parameters",
        ),
        (
            dist.Normal(torch.zeros((), requires_grad=True), 1.0),
            ValueError,
            "the base of {} must carry no parameter, got Normal(loc: 0.0, scale: 1.0) with one "
            "that requires a gradient; learn the RNN's spread instead",
        ),
        (
            dist.Beta(torch.ones((), requires_grad=True), 1.0),
            ValueError,
            "the base of {} must carry no parameter",
        ),
        (
            dist.VonMises(0.0, 1.0),
            ValueError,
            "knows no mean and variance of its own; give them as {}(base, mean=..., stddev=...)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_base_that_cannot_be_standardised(
    kind: Any, base: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message.format(kind.__name__))):
        kind(base)


@pytest.mark.parametrize("given", [{"mean": 0.0, "stddev": 1.0}, {"stddev": 1.0}])
def test_moments_given_by_hand_do_not_make_a_cauchy_finite(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs a base with finite mean and a finite"):
        Additive(dist.Cauchy(0.0, 1.0), **given)


@pytest.mark.parametrize("stddev", [0.0, -1.0, INF, math.nan])
def test_a_bad_stddev_by_hand(stddev: float) -> None:
    with pytest.raises(ValueError, match="finite, positive variance|knows no mean and variance"):
        Additive(logistic_recipe(), mean=0.5, stddev=stddev)


def test_a_variance_given_as_a_standard_deviation_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"stddev=4.0 contradicts Normal\(.*\), whose stddev is 2"):
        Additive(dist.Normal(0.0, 2.0), stddev=4.0)
    assert Additive(dist.Normal(0.0, 2.0), mean=1e-6, stddev=2.00001).stddev == 2.0


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError,
        match="unknown noise 'gausian'; the known ones are gaussian, laplace, logistic, gumbel, "
        "gamma, beta, bernoulli, poisson, exponential, uniform, chi2, lognormal",
    ):
        family("gausian")
    with pytest.raises(
        ValueError, match="unknown injection 'add'; choose additive or multiplicative"
    ):
        family("gaussian", "add")  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [0.0, -0.5, INF, math.nan])
def test_a_family_needs_a_positive_spread(spread: float) -> None:
    message = f"spread must be positive and finite, got {spread}; choose one above 0"
    with pytest.raises(ValueError, match=message):
        family("bernoulli", spread=spread)


def test_the_names_are_read_only() -> None:
    with pytest.raises(TypeError):
        FAMILIES["cauchy"] = lambda spread: dist.Cauchy(0.0, 1.0)  # type: ignore[index]


# ---------------------------------------------------------------- mean-parameterised


def gamma(m: Tensor, s: Tensor) -> Any:
    return dist.Gamma(1 / s**2, 1 / (m * s**2))


def beta(m: Tensor, s: Tensor) -> Any:
    return dist.Beta(m / s**2, (1 - m) / s**2)


RANGES = {
    "tanh": (Range(-1.0, 1.0), "tanh"),
    "relu": (Range(0.0, INF, closed=True), "relu"),
    "sigmoid": (Range(0.0, 1.0), "sigmoid"),
    "identity": (Range(-INF, INF), "identity"),
}
LAWS: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, str]]] = {
    "Normal": (dist.Normal, {}),
    "Gamma": (gamma, {"tanh": "-0.998", "relu": "0", "identity": "-9.98"}),
    "Beta": (beta, {"tanh": "-0.998", "relu": "0", "identity": "-9.98"}),
    "Poisson": (lambda m, s: dist.Poisson(m), {"tanh": "-0.998", "identity": "-9.98"}),
    "Bernoulli": (
        lambda m, s: dist.Bernoulli(m),
        {"tanh": "-0.998", "relu": "2", "identity": "-9.98"},
    ),
    "Uniform": (
        lambda m, s: dist.Uniform(0 * m, 2 * m),
        {"tanh": "-0.998", "relu": "0", "identity": "-9.98"},
    ),
    "LogNormal": (
        lambda m, s: dist.LogNormal(m.log() - s**2 / 2, s),
        {"tanh": "-0.998", "relu": "0", "identity": "-9.98"},
    ),
}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("transition", RANGES)
@pytest.mark.parametrize("name", LAWS)
def test_a_range_is_refused_or_accepted(name: str, transition: str, validated: bool) -> None:
    """Naming the law and the transition; Distribution's validation may be switched off."""
    fn, refused = LAWS[name]
    low, high, closed = RANGES[transition][0]
    known = refused.get(transition)
    noise = MeanParameterized(fn)
    before = td.Distribution._validate_args
    try:
        td.Distribution.set_default_validate_args(validated)
        if known is None:
            noise.check_range(*RANGES[transition])
            return
        ends = f"[{low:g}, {high:g})" if closed else f"({low:g}, {high:g})"
        message = (
            f"MeanParameterized({name}) is not defined for the mean {known}, which lies in the "
            f"range {ends} of the {transition} transition; choose a family whose support "
            "contains that range, or Additive"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            noise.check_range(*RANGES[transition])
    finally:
        td.Distribution.set_default_validate_args(before)


def test_checking_a_range_draws_nothing() -> None:
    before = torch.get_rng_state()
    MeanParameterized(gamma).check_range(*RANGES["sigmoid"])
    assert torch.equal(torch.get_rng_state(), before)


def test_additive_noise_takes_any_state() -> None:
    for bounds_and_name in RANGES.values():
        Additive(dist.Gamma(2.0, 1.0)).check_range(*bounds_and_name)


def test_a_wrong_mean_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "MeanParameterized(Gamma) must have the state as its mean, got mean 16 for the state "
            "0.001; rescale its parameters"
        ),
    ):
        MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, torch.ones_like(m))).check_range(
            *RANGES["sigmoid"]
        )
    with pytest.raises(ValueError, match="must have the state as its mean, got mean -0.988 for"):
        MeanParameterized(lambda m, s: dist.Normal(m + 0.01, s)).check_range(*RANGES["tanh"])


def test_a_law_that_knows_no_mean_is_taken_at_its_word() -> None:
    def shifted(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, s), [td.AffineTransform(0.0, 1.0)])

    MeanParameterized(shifted).check_range(*RANGES["tanh"])

    def positive(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, s), [td.ExpTransform()])

    def narrow(m: Tensor, s: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(m, 0.5 - m), [td.AffineTransform(0.0, 1.0)])

    for fn, state in ((positive, "-0.998"), (narrow, "0.6")):
        message = f"MeanParameterized(TransformedDistribution) is not defined for the mean {state}"
        with pytest.raises(ValueError, match=re.escape(message)):
            MeanParameterized(fn).check_range(*RANGES["tanh"])


def test_fn_must_be_a_function_that_returns_univariate_distributions() -> None:
    for wrong in (None, dist.Normal(0.0, 1.0)):  # the latter can be called: it draws
        with pytest.raises(TypeError, match=r"needs a function from \(mean, spread\) to a dist"):
            MeanParameterized(wrong)
    with pytest.raises(TypeError, match="needs fn to return a distribution, got tensor"):
        MeanParameterized(lambda m, s: m).check_range(*RANGES["tanh"])
    with pytest.raises(
        ValueError,
        match=re.escape(
            "needs fn to return one univariate distribution for each mean, got batch shape (1,) "
            "and event shape (1,) for means with shape (1, 1)"
        ),
    ):
        MeanParameterized(lambda m, s: dist.Normal(m, s).to_event(1)).check_range(*RANGES["tanh"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_state_is_moved_inside_its_range(dtype: torch.dtype) -> None:
    """σ(20) is 1 in float32, where a Beta's second parameter would be 0 and raise."""
    h = torch.tensor([-200.0, 0.3, 200.0], dtype=dtype).sigmoid().requires_grad_()
    noise = MeanParameterized(beta)
    with pytest.raises(ValueError, match="Expected parameter concentration"):
        noise.distribution(h, h.new_tensor(0.5))
    inside = noise.clamp(h, Range(0.0, 1.0))
    assert ((inside - h).abs() <= torch.finfo(dtype).eps).all() and inside[1] == h[1]
    z = noise.distribution(inside, h.new_tensor(0.5)).rsample()
    (gradient,) = torch.autograd.grad(z.sum(), h)
    assert z.isfinite().all() and gradient.isfinite().all()
    zero = torch.zeros(2, dtype=dtype)
    assert torch.equal(noise.clamp(zero, Range(0.0, INF, closed=True)), zero)
    assert torch.equal(Additive(dist.Normal(0.0, 1.0)).clamp(h, Range(0.0, 1.0)), h)


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 1)])
def test_mean_and_spread_arrive_in_one_shape(shape: tuple[int, ...]) -> None:
    seen = []

    def fn(m: Tensor, s: Tensor) -> Any:
        seen.append((m.shape, s.shape))
        return gamma(m, s)

    h = torch.rand(4, 5) + 0.1
    law = MeanParameterized(fn).distribution(h, torch.full(shape, 0.3))
    expected = torch.broadcast_shapes((4, 5), shape)
    assert seen == [(expected, expected)] and law.batch_shape == expected
    torch.testing.assert_close(law.mean, h.expand(expected))
    torch.testing.assert_close(law.stddev, 0.3 * h.expand(expected))


def test_equality_of_mean_parameterised_noises() -> None:
    assert MeanParameterized(gamma) == MeanParameterized(gamma) != MeanParameterized(beta)
    assert hash(MeanParameterized(gamma)) == hash(MeanParameterized(gamma))
    assert pickle.loads(pickle.dumps(MeanParameterized(gamma))) == MeanParameterized(gamma)


def test_the_abstract_noise_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Noise().distribution(torch.zeros(1), torch.ones(1))
