"""The noise of a whole sequence, drawn before the RNN runs."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule
from torch import Tensor

from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.sites import Call

__all__ = ["draw"]


def draw(
    module: PyroModule,
    name: str,
    noise: Noise | None,
    units: int,
    like: Tensor,
    call: Call,
    tied: bool,
) -> Tensor | None:
    """Issues the site of one noise.

    Args:
        module: the module whose Pyro name prefixes the site.
        name: the site's name.
        noise: the noise, or None.
        units: H.
        like: a tensor with the dtype and device of ε.
        call: the call.
        tied: whether all steps share one ε.

    Returns:
        ε with shape (T, B, H), (1, B, H) if ``tied``; None if the noise is not affine.
    """
    if not isinstance(noise, AffineNoise):
        return None
    shape = (1 if tied else call.steps, call.batch, units)
    distribution: Any = noise.standardized(like).expand(shape)
    sample = call.sample_once if tied else call.sample
    return sample(module, name, distribution.to_event(1))
