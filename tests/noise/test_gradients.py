"""The gradient through a draw, and what an RNN multiplies and adds to get the draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.noise.location_scale import LocationScale
from tests.noise.bases import BASES, SPREAD, each_base, each_kind, f64, signed_spread, states


@each_base
@each_kind
def test_gradient_is_pathwise(name: str, kind: Any) -> None:
    """∂z/∂h is 1 or 1 + γε, ∂z/∂γ is ε or hε: the original RNN's gradient, and γ's."""
    noise = kind(BASES[name][0]())
    h, spread = states().requires_grad_(), f64(SPREAD).requires_grad_()
    distribution = noise.distribution(h, spread)
    assert distribution.has_rsample
    torch.manual_seed(22)
    z = distribution.rsample((3,))
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
    distribution = kind(BASES["bernoulli"][0]()).distribution(h, spread)
    z = distribution.enumerate_support()
    log_mass = distribution.log_prob(z)
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
    distribution = LocationScale(epsilon, h, scale, validate_args=False)
    distribution.log_prob(distribution.rsample())
    epsilon.log_prob(epsilon.rsample())
    with pytest.raises(AssertionError, match="waits"):
        bool(h.any())
