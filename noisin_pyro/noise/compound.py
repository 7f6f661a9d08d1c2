"""The density of a base that is made of others: a mixture, or a transformed distribution.

A torch distribution that does not validate its arguments may return any number for the density
outside its support: of a Pareto a positive one, of a Beta NaN. So a mixture of two would be wrong
where only one of them is zero. Here each part has the density 0 outside its own support.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from noisin_pyro.noise.moments import bounds

__all__ = ["base_bounds", "has_edges", "is_compound", "log_density", "parts_of", "support_of"]

_MIXTURES = (td.MixtureSameFamily, dist.MixtureSameFamily)
_TRANSFORMED = (td.TransformedDistribution, dist.TransformedDistribution)  # subclasses say more
_WRAPPERS = (td.Independent, dist.Independent, dist.MaskedDistribution)


def is_compound(base: Any) -> bool:
    """Whether the density of a base is computed from those of its parts."""
    return type(base) in (*_MIXTURES, *_TRANSFORMED, *_WRAPPERS)


def parts_of(base: Any) -> list[Any]:
    """A base, and the distributions whose densities make up its own.

    Example:
        >>> [type(part).__name__ for part in parts_of(dist.Gamma(2.0, 1.0).mask(True))]
        ['MaskedDistribution', 'Gamma']
    """
    return [base, *parts_of(_inner(base))] if is_compound(base) else [base]


def support_of(base: Any) -> Any:
    """The support of a base, for a VonMises one period of its density, which torch calls real."""
    if isinstance(base, td.VonMises):
        return constraints.interval(-math.pi, math.pi)
    return base.support


def has_edges(base: Any) -> bool:
    """Whether a base, or a part of it, has a bound, or lies on a lattice."""
    supports = [support_of(part) for part in parts_of(base)]
    whole = (-math.inf, math.inf)
    return any(support.is_discrete or bounds(support) != whole for support in supports)


def base_bounds(base: Any) -> tuple[float, float]:
    """The lower and upper bound of a base.

    torch calls the support of a shifted and scaled distribution real.

    Example:
        >>> flipped = td.AffineTransform(1.0, -2.0)
        >>> base_bounds(td.TransformedDistribution(td.Exponential(1.0), [flipped]))
        (-inf, 1.0)
    """
    low, high = _ends(base, torch.empty((), dtype=torch.float64, device="cpu"))
    return float(low.min()), float(high.max())


def log_density(base: Any, x: Tensor, slack: Tensor) -> Tensor:
    """The log-density of a base, or log-probability of a discrete one, −∞ outside its support.

    Args:
        base: the base, with batch shape () or that of the last dimensions of ``x``.
        x: any values, integers if the base is discrete.
        slack: how far rounding may have moved each of them; a value so near to the support counts
            as a point of it.
    """
    if type(base) in _MIXTURES:
        weights: Tensor = base.mixture_distribution.logits.log_softmax(-1)
        each = weights + log_density(_inner(base), x.unsqueeze(-1), slack.unsqueeze(-1))
        somewhere = (each > -math.inf).any(-1)
        total = each.masked_fill(~somewhere.unsqueeze(-1), 0.0).logsumexp(-1)
        return total.masked_fill(~somewhere, -math.inf)
    if type(base) in _WRAPPERS:
        return log_density(_inner(base), x, slack)
    low, high = _ends(base, x)
    shift = slack.minimum((high - low) / 4)
    inside = x.clamp(low + shift, high - shift)
    within = (x - inside).abs() <= slack + shift
    left, right = low.where(low > -math.inf, high - 2), high.where(high < math.inf, low + 2)
    middle = ((left + right) / 2).nan_to_num(0.0)  # torch's gradient may be infinite at an end
    inside = inside.where(within, middle)
    if type(base) not in _TRANSFORMED:
        return torch.where(within, base.log_prob(inside), -math.inf)
    jacobian = torch.zeros_like(inside)
    for transform in reversed(base.transforms):
        inside, y = transform.inv(inside), inside
        slope: Any = transform.log_abs_det_jacobian(inside, y)
        jacobian, slack = jacobian + slope, slack * (-slope).exp()
    return torch.where(within, log_density(base.base_dist, inside, slack) - jacobian, -math.inf)


def _inner(base: Any) -> Any:
    return base.component_distribution if type(base) in _MIXTURES else base.base_dist


def _ends(base: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of a base, which broadcast with its batch shape, as tensors like another."""
    if type(base) in _TRANSFORMED and not base.transforms:
        return _ends(base.base_dist, like)
    if type(base) in _TRANSFORMED and isinstance(last := base.transforms[-1], td.AffineTransform):
        before = td.TransformedDistribution(base.base_dist, base.transforms[:-1])
        loc, scale = (
            torch.as_tensor(part, device=like.device).to(like) for part in (last.loc, last.scale)
        )
        ends = [loc + scale * end for end in _ends(before, like)]
        return torch.minimum(*ends), torch.maximum(*ends)
    if type(base) in _MIXTURES:
        low, high = _ends(_inner(base), like)
        return (low.amin(-1) if low.dim() else low), (high.amax(-1) if high.dim() else high)
    support = support_of(base)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        support = constraints.unit_interval
    low, high = (
        torch.as_tensor(getattr(support, name, end), device=like.device).to(like)
        for name, end in (("lower_bound", -math.inf), ("upper_bound", math.inf))
    )
    return low, high
