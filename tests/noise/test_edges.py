"""Where rounding and special values could spoil a density: h = 0, the ends of a support, NaN."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.noise.location_scale import LocationScale
from noisin_pyro.noise.moments import bounds, moments
from noisin_pyro.noise.standardized import Standardized
from tests.noise.bases import BASES, DISCRETE, INF, KINDS, SPREAD, each_base, f64, standard, states


@each_base
def test_multiplicative_noise_leaves_a_state_of_zero(name: str) -> None:
    distribution = Multiplicative(BASES[name][0]()).distribution(
        torch.zeros(4).double(), f64(SPREAD)
    )
    z = distribution.sample()
    assert torch.equal(z, torch.zeros(4).double())
    assert torch.equal(distribution.log_prob(z), torch.zeros(4).double())
    distribution._validate_args = False
    assert (distribution.log_prob(z + 1e-6) == -INF).all()


@each_base
def test_a_state_of_zero_among_others_leaves_their_gradients_finite(name: str) -> None:
    h, spread = states().requires_grad_(), f64(SPREAD).requires_grad_()
    distribution = Multiplicative(BASES[name][0]()).distribution(h, spread)
    z = distribution.sample()
    gradients = torch.autograd.grad(distribution.log_prob(z).sum(), (h, spread), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@each_base
@given(
    # A subnormal h has a few bits, so γ|h| may be rounded by more than a quarter of itself.
    h=st.floats(-300, 300, width=32, allow_subnormal=False),
    spread=st.floats(0.0625, 8, width=32),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=6, deadline=None)
def test_no_draw_is_rounded_out_of_its_own_distribution(
    name: str, h: float, spread: float, kind: Any, seed: int
) -> None:
    """In float32 z = h + γε keeps few digits of ε; its density must not become 0 for that."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        distribution = kind(BASES[name][0]()).distribution(
            torch.full((500,), h, dtype=torch.float32), torch.tensor(spread)
        )
        assert (
            distribution.log_prob(distribution.sample()).isfinite().all()
        )  # and the validation lets it pass
        epsilon = distribution.standardized.expand([500])
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


def test_every_draw_of_a_base_far_from_zero_lies_in_the_support() -> None:
    """x − μ keeps few digits of x; some 100 of the draws are at an end of the base."""
    base = dist.Uniform(1000.3, 1001.1)
    epsilon = Standardized(base, *moments(base))
    draws = epsilon.expand([1_000_000]).sample()
    assert epsilon.support.check(draws).all() and epsilon.log_prob(draws).isfinite().all()


@pytest.mark.parametrize(
    "base, inside, beyond",
    [(dist.Uniform(0.0, 1.0), -0.05, -0.1), (dist.Poisson(1.0), -0.4, -0.6)],
    ids=["continuous", "discrete"],
)
def test_the_tolerance_of_rounding_is_bounded(base: Any, inside: float, beyond: float) -> None:
    """A quarter of a standard deviation, or half of the distance to the next integer."""
    mean, stddev = moments(base)
    epsilon = Standardized(base, mean, stddev, validate_args=False)
    values = (torch.tensor([inside, beyond]) - mean) / stddev
    near, far = epsilon.rounded_log_prob(values, 1e9)
    assert near.isfinite() and far == -INF


@pytest.mark.parametrize("name, ends", [("exponential", 1), ("gamma", 1), ("uniform", 2)])
def test_beyond_the_edge_lies_nothing(name: str, ends: int) -> None:
    distribution = Standardized(*standard(name), validate_args=False)
    finite = [end for end in distribution.ends if math.isfinite(end)]
    assert len(finite) == ends
    for end in finite:
        assert distribution.log_prob(f64(end + math.copysign(1e-9, end))) == -INF
        assert distribution.log_prob(f64(end - math.copysign(1e-9, end))).isfinite()
    loud = Standardized(*standard(name), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        loud.log_prob(f64(finite[0] - 1.0))


@pytest.mark.parametrize("name", DISCRETE)
def test_between_the_points_of_a_lattice_lies_nothing(name: str) -> None:
    distribution = Standardized(*standard(name))
    points = (torch.arange(2.0).double() - distribution.loc) / distribution.std
    assert distribution.log_prob(points).isfinite().all()
    assert (distribution.log_prob(points[:1] + torch.tensor([1e-6, 0.5])) == -INF).all()
    z = LocationScale(distribution, f64(1.0), f64(-0.5))
    assert z.log_prob(1.0 - 0.5 * points).isfinite().all()
    assert z.log_prob(1.0 - 0.5 * points[0] - 1e-6) == -INF
    assert z.log_prob(f64(1.0) - 0.5 * (points[0] - 1 / distribution.std)) == -INF  # x = −1


@each_base
def test_nan_stays_nan(name: str) -> None:
    distribution = Standardized(*standard(name), validate_args=False)
    value = torch.tensor([math.nan, 0.0]).double()
    assert distribution.log_prob(value)[0].isnan()
    z = LocationScale(distribution, value, f64(1.0), validate_args=False)
    assert z.log_prob(torch.zeros(2).double())[0].isnan()


def test_an_infinite_draw_of_the_base_becomes_its_mean() -> None:
    """Pyro's Logistic makes one of every 2²⁴ float32 draws infinite: a uniform draw of 0."""

    class Unlucky(dist.Logistic):
        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            return torch.tensor([-INF, INF, 1.0]).expand(sample_shape)

    z = Additive(Unlucky(0.5, 1.0)).distribution(torch.zeros(3), torch.tensor(1.0)).sample()
    torch.testing.assert_close(z[:2], torch.zeros(2))
    assert z[2] > 0


def test_a_draw_is_never_written_into_the_base() -> None:
    class Constant(dist.Normal):
        held = torch.tensor(3.0)

        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            return self.held.expand(sample_shape)

    epsilon = Standardized(Constant(1.0, 2.0), 1.0, 2.0)
    assert torch.equal(epsilon.expand([4]).sample(), torch.ones(4))
    assert Constant.held == 3.0


def test_the_density_of_a_von_mises_does_not_repeat_itself() -> None:
    """Its support in torch is the whole line, where the mass of its density is infinite."""
    base = dist.VonMises(0.0, 4.0)
    epsilon = Additive(base, mean=0.0, stddev=0.549).standardized(
        torch.ones((), dtype=torch.float64)
    )
    assert not epsilon.unbounded
    grid = torch.linspace(*epsilon.ends, 20001, dtype=torch.float64)
    assert torch.trapezoid(epsilon.log_prob(grid).exp(), grid) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="within the support"):
        epsilon.log_prob(torch.tensor(2 * math.pi / 0.549))
