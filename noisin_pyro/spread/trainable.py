"""The spreads of a model that an optimizer trains."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["spread_parameters"]


def spread_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The trainable spreads of a module and its submodules, for a parameter group without decay.

    Args:
        module: any module.

    Returns:
        An iterator over the parameters, without repetition if several layers share one.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, Learned, NoisyGRU
        >>> gru = NoisyGRU(3, 5, noise=Additive(dist.Normal(0.0, 1.0)), spread=Learned(0.3))
        >>> spreads = set(spread_parameters(gru))
        >>> weights = [p for p in gru.parameters() if p not in spreads]
        >>> optimizer = torch.optim.AdamW(
        ...     [{"params": weights}, {"params": list(spreads), "weight_decay": 0.0}]
        ... )
        >>> len(weights), len(spreads)
        (4, 1)
    """
    found = (
        part._parameters.get(name + ending)
        for part in module.modules()
        for name in getattr(part, "_spreads", ())
        for ending in ("", "_unconstrained")
    )
    return iter(dict.fromkeys(gamma for gamma in found if gamma is not None))
