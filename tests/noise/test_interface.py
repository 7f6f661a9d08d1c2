"""A noise as a Pyro distribution (shapes, support, enumeration) and as a frozen value."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints

from noisin_pyro import FAMILIES, Additive, Multiplicative
from noisin_pyro.noise.base import Noise
from tests.noise.bases import BASES, INF, SPREAD, each_base, each_kind, f64, states


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
    distribution = noise.distribution(states(), torch.rand(2, 1, 1).double() + 0.1)
    assert distribution.batch_shape == (2, 1, 5)
    wider = distribution.expand([3, 2, 4, 5])
    assert wider.sample((6,)).shape == (6, 3, 2, 4, 5)
    assert wider.log_prob(distribution.sample()).shape == (3, 2, 4, 5)


def test_enumeration() -> None:
    epsilon = Additive(dist.Bernoulli(f64(0.5))).standardized(states()).expand([3, 5])
    assert epsilon.has_enumerate_support
    assert epsilon.enumerate_support().shape == (2, 3, 5)
    assert epsilon.enumerate_support(expand=False).flatten().tolist() == [-1.0, 1.0]
    assert epsilon.enumerate_support(expand=False).shape == (2, 1, 1)
    distribution = Additive(dist.Bernoulli(f64(0.5))).distribution(states(), f64(SPREAD))
    torch.testing.assert_close(
        distribution.enumerate_support(), torch.stack([states() - SPREAD, states() + SPREAD])
    )
    assert not Additive(dist.Poisson(1.0)).standardized(states()).has_enumerate_support


@pytest.mark.parametrize("name", ["normal", "gamma", "beta", "uniform"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_support_is_where_the_density_is(name: str, sign: float) -> None:
    """What HMC and automatic guides use: every unconstrained number maps into the distribution."""
    h = sign * torch.tensor([0.5, 2.0, 7.0])
    for noise in (Additive(BASES[name][0]()), Multiplicative(BASES[name][0]())):
        distribution = noise.distribution(h, torch.tensor(SPREAD))
        unconstrained = torch.linspace(-6, 6, 25).unsqueeze(-1)
        z = biject_to(distribution.support)(unconstrained)
        assert distribution.log_prob(z).isfinite().all()
        low = getattr(distribution.support, "lower_bound", h)
        high = torch.nextafter(getattr(distribution.support, "upper_bound", h), torch.tensor(-INF))
        assert distribution.log_prob(torch.stack([low, high])).isfinite().all()
        epsilon = biject_to(distribution.standardized.support)(unconstrained)
        assert distribution.standardized.log_prob(epsilon).isfinite().all()
    if name == "uniform":
        expected = h - SPREAD * h.abs() * math.sqrt(3), h + SPREAD * h.abs() * math.sqrt(3)
        torch.testing.assert_close(
            (distribution.support.lower_bound, distribution.support.upper_bound), expected
        )


def test_the_support_of_mixed_signs_is_the_line() -> None:
    distribution = Multiplicative(dist.Gamma(2.0, 1.0)).distribution(
        states().float(), torch.tensor(SPREAD)
    )
    assert distribution.support is constraints.real
    z = states().float() * (1 - 2 * SPREAD)  # ε = −2 lies below −√2
    assert (distribution.log_prob(z)[states() != 0] == -INF).all()


def test_repr() -> None:
    assert repr(Additive(dist.Normal(0.0, 1.0))) == (
        "Additive(base=Normal(loc: 0.0, scale: 1.0), mean=0.0, stddev=1.0)"
    )
    epsilon = Additive(dist.Laplace(0.0, 1.0)).standardized(torch.zeros(())).expand([3])
    assert repr(epsilon) == "Standardized(Laplace(loc: 0.0, scale: 1.0), batch_shape=(3,))"


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
    distribution, same = noise.distribution(h, f64(SPREAD)), again.distribution(h, f64(SPREAD))
    assert torch.equal(distribution.log_prob(z), same.log_prob(z))


def test_replacing_the_base_alone_is_refused_rather_than_biased() -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "mean=0.0 contradicts Exponential(rate: 2.0), whose mean is 0.5; leave it out"
        ),
    ):
        dataclasses.replace(Additive(dist.Normal(0.0, 1.0)), base=dist.Exponential(2.0))


def test_the_names_are_read_only() -> None:
    with pytest.raises(TypeError):
        FAMILIES["cauchy"] = lambda spread: dist.Cauchy(0.0, 1.0)  # type: ignore[index]


def test_the_abstract_noise_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Noise().distribution(torch.zeros(1), torch.ones(1))
