"""Noise with correlated units, for guides."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from noisin_pyro.noise.location_scale import LocationScale

__all__ = ["Correlated"]


class Correlated(dist.TorchDistribution):
    """z = loc + scale · (shift + C ε), a :class:`LocationScale` with a lower triangular matrix C.

    With ``shift = 0`` and C = 1 it equals the :class:`LocationScale`. A unit with ``scale`` 0 is a
    point mass, and its ε has no effect on the units after it.

    Args:
        prior: z = loc + scale · ε with batch shape (\\*B, H), where ε has the whole real line as
            its support.
        shift: the shift, with shape (\\*B, H).
        tril: C, lower triangular with a positive diagonal, with shape (\\*B, H, H).

    The shapes (\\*B, H) of the three broadcast.

    Example:
        >>> from noisin_pyro.noise.standardized import Standardized
        >>> normal = Standardized(torch.distributions.Normal(0.0, 1.0), 0.0, 1.0)
        >>> prior = LocationScale(normal, torch.tensor([1.0, 2.0]), torch.tensor(0.5))
        >>> z = Correlated(prior, torch.zeros(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> z.mean, z.stddev
        (tensor([1., 2.]), tensor([0.5000, 2.5000]))
    """

    arg_constraints = {"shift": constraints.real_vector, "tril": constraints.lower_cholesky}
    support = constraints.real_vector
    has_rsample = True
    shift: Tensor
    tril: Tensor

    def __init__(
        self,
        prior: LocationScale,
        shift: Tensor,
        tril: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(prior.batch_shape, shift.shape, tril.shape[:-1])
        self.prior = prior.expand(shape)
        self.shift, self.tril = shift.expand(shape), tril.expand(*shape, shape[-1])
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def __repr__(self) -> str:
        return f"Correlated({self.prior}, batch_shape={tuple(self.batch_shape)})"

    def expand(self, batch_shape: Any, _instance: Any = None) -> Correlated:
        new: Correlated = self._get_checked_instance(  # type: ignore[no-untyped-call]
            Correlated, _instance
        )
        shape, units = torch.Size(batch_shape), self.event_shape
        new.prior, new.shift = self.prior.expand(shape + units), self.shift.expand(shape + units)
        new.tril = self.tril.expand(shape + units + units)
        super(Correlated, new).__init__(shape, units, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.prior.loc + self.prior.scale * self.shift

    @property
    def variance(self) -> Tensor:
        return self.prior.variance * self._linked().square().sum(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        epsilon = self.prior.standardized.expand(shape).rsample()
        moved = (self._linked() @ epsilon.unsqueeze(-1)).squeeze(-1)
        return self.mean + self.prior.scale * moved

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        scale, tril = self.prior.scale, self._linked()
        still = scale == 0
        moved = (value - self.mean) / scale.masked_fill(still, 1.0)
        tril, moved = _broadcast(tril, moved)
        epsilon = torch.linalg.solve_triangular(tril, moved.unsqueeze(-1), upper=False).squeeze(-1)
        density = self.prior.standardized.log_prob(epsilon)
        density = density - tril.diagonal(dim1=-2, dim2=-1).log()
        density = density - scale.masked_fill(still, 1.0).abs().log()
        point = torch.where(value == self.prior.loc, 0.0, -math.inf).to(density.dtype)
        return torch.where(still, point, density).sum(-1)

    def _linked(self) -> Tensor:
        """C with zeros below the diagonal in the columns of units with ``scale`` 0."""
        still = self.prior.scale == 0
        below = self.tril.tril(-1).masked_fill(still.unsqueeze(-2), 0.0)
        return below + self.tril.diagonal(dim1=-2, dim2=-1).diag_embed()


def _broadcast(tril: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(tril.shape[:-1], vector.shape)
    return tril.expand(*shape, shape[-1]), vector.expand(shape)
