"""A distribution by its class path: what a name may import and call."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributions import Laplace

from noisin_pyro.noise.class_path import build_distribution


def named(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def test_a_distribution_of_the_known_packages_is_built() -> None:
    built = build_distribution(named("torch.distributions.Laplace", loc=0.0, scale=2.0))
    assert isinstance(built, Laplace) and built.scale == 2.0


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        (named("os.system", command="true"), "must lie in torch.distributions, .* got 'os.system'"),
        (named("torch.distributionsx.Normal"), "must lie in torch.distributions"),
        (named("torch.load", f="x"), "must lie in torch.distributions"),
        (named("torch.distributions.utils.torch.os.system"), "cannot be built"),
        (named("torch.distributions.constraints.real"), "is no distribution"),
        (named("noisin_pyro.cli.main"), "is no distribution"),
        (named("torch.distributions.Distribution"), "is abstract"),
        (named("torch.distributions.ExponentialFamily"), "is abstract"),
        (named("pyro.distributions.TorchDistribution"), "is abstract"),
        (named("torch.distributions.Normal", loc="0", scale=1.0), "init_args must be numbers"),
        (named("torch.distributions.Normal", scale=-1.0, loc=0.0), "cannot be built"),
        (named("..x"), "names no distribution"),
        ({"class_path": "a.b", "args": {}}, "names no distribution"),
        ({"class_path": 3}, "names no distribution"),
        ({}, "names no distribution"),
    ],
)
def test_refusals(noise: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_distribution(noise)
