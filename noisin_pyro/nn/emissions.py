"""Emissions p(y_t | z_t): modules from a hidden state to a Pyro distribution.

Any callable from z with shape (\\*, T, B, H) to a distribution with batch shape (\\*, T, B) is an
emission. This module has the common ones.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from noisin_pyro.kernels.linear_softmax import linear_log_softmax
from noisin_pyro.nn.provenance import tracked
from noisin_pyro.parameters import Freezable

__all__ = ["BernoulliEmission", "CategoricalEmission", "LinearCategorical", "NormalEmission"]


class LinearCategorical(dist.TorchDistribution):
    """Categorical(softmax(V z + b)) with a fast log-probability.

    ``Categorical(logits=...)`` stores the normalised log-probabilities of all classes. This class
    stores z and V, and ``log_prob`` keeps one matrix of that size for the backward pass
    (:mod:`.linear_softmax`).

    Args:
        features: z, with shape (\\*B, H).
        weight: V, with shape (K, H).
        bias: b, with shape (K,), or None for 0.

    Raises:
        ValueError: if V or b has another shape.

    Example:
        >>> import torch
        >>> words = LinearCategorical(torch.zeros(2, 3), torch.zeros(4, 3))
        >>> words.log_prob(torch.tensor([0, 3])).exp()
        tensor([0.2500, 0.2500])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if weight.dim() != 2 or weight.shape[1] != features.shape[-1]:
            raise ValueError(
                f"the weight must have shape (K, {features.shape[-1]}), one matrix for all "
                f"particles, got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"the bias must have shape ({weight.shape[0]},), one number for each class, "
                f"got {tuple(bias.shape)}"
            )
        self.features, self.weight, self.bias = features, weight, bias
        super().__init__(features.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearCategorical:
        new: LinearCategorical = self._get_checked_instance(  # type: ignore[no-untyped-call]
            LinearCategorical, _instance
        )
        shape = torch.Size(batch_shape)
        new.features = self.features.expand(*shape, self.features.shape[-1])
        new.weight, new.bias = self.weight, self.bias
        super(LinearCategorical, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def logits(self) -> Tensor:
        """Unnormalised log-probabilities, with shape (\\*B, K)."""
        return F.linear(self.features, self.weight, self.bias)

    @property
    def probs(self) -> Tensor:
        """Probabilities, with shape (\\*B, K)."""
        return self.logits.softmax(-1)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.weight.shape[0] - 1)

    def categorical(self) -> Any:
        """The same distribution as a ``dist.Categorical``."""
        return dist.Categorical(logits=self.logits)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.categorical().sample(sample_shape)  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if torch.broadcast_shapes(value.shape, self.batch_shape) != self.batch_shape:
            return self.categorical().log_prob(value)  # type: ignore[no-any-return]
        rows = self.features.reshape(-1, self.features.shape[-1])
        targets = value.expand(self.batch_shape).reshape(-1).long()
        log_probs = tracked(linear_log_softmax, rows, self.weight, self.bias, targets)
        return log_probs.view(self.batch_shape)

    def entropy(self) -> Tensor:
        return self.categorical().entropy()  # type: ignore[no-any-return]

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(self.weight.shape[0], device=self.weight.device)
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1,) + self.batch_shape) if expand else values


class _Linear(Freezable, nn.Linear, PyroModule):
    """A linear map whose weights may have priors; outside Pyro a plain ``nn.Linear``."""


class CategoricalEmission(_Linear):
    """y_t ~ Categorical(softmax(V z_t + b)): an ``nn.Linear`` that returns a distribution.

    The call maps z with shape (\\*, T, B, H) to a distribution with batch shape (\\*, T, B).

    Args:
        hidden_size: H.
        num_classes: K.
        bias: whether there is a bias b.

    Example:
        >>> import torch
        >>> CategoricalEmission(5, 10)(torch.randn(7, 2, 5)).batch_shape
        torch.Size([7, 2])
    """

    def __init__(self, hidden_size: int, num_classes: int, bias: bool = True) -> None:
        super().__init__(hidden_size, num_classes, bias)

    def forward(self, z: Tensor) -> LinearCategorical:
        return LinearCategorical(z, self.weight, self.bias)


class NormalEmission(_Linear):
    """y_t ~ Normal(V z_t + b, σ) for D independent variables, with a learned σ for each.

    The call maps z with shape (\\*, T, B, H) to a distribution with batch shape (\\*, T, B) and
    event shape (D,).

    Args:
        hidden_size: H.
        size: D.
        scale: the initial standard deviation σ.

    Raises:
        ValueError: if ``scale`` is not positive and finite.

    Example:
        >>> import torch
        >>> NormalEmission(5, 1)(torch.randn(7, 2, 5)).event_shape
        torch.Size([1])
    """

    def __init__(self, hidden_size: int, size: int, scale: float = 1.0) -> None:
        super().__init__(hidden_size, size)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive, finite standard deviation, got {scale}")
        self.log_scale = nn.Parameter(torch.full((size,), math.log(scale)))

    def forward(self, z: Tensor) -> Any:
        mean = F.linear(z, self.weight, self.bias)
        return dist.Normal(mean, self.log_scale.exp()).to_event(1)


class BernoulliEmission(_Linear):
    """y_t ~ Bernoulli(σ(V z_t + b)) for D independent binary variables, such as the notes of music.

    The call maps z with shape (\\*, T, B, H) to a distribution with batch shape (\\*, T, B) and
    event shape (D,).

    Args:
        hidden_size: H.
        size: D.

    Example:
        >>> import torch
        >>> BernoulliEmission(5, 88)(torch.randn(7, 2, 5)).event_shape
        torch.Size([88])
    """

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__(hidden_size, size)

    def forward(self, z: Tensor) -> Any:
        return dist.Bernoulli(logits=F.linear(z, self.weight, self.bias)).to_event(1)
