"""Distributions by their class path in a configuration: checked, built, and described.

A configuration can come from a stranger, and importing a module runs its code. So the class path is
checked before anything is imported. torch is imported only to build or describe a distribution.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributions import Distribution

__all__ = ["build_distribution", "check_class_path", "describe_distribution", "dtype_of"]

#: The packages from which a class may be imported without ``--trust_code true``.
PACKAGES = ("torch.distributions", "pyro.distributions", "noisin_pyro")

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_EXAMPLE = (
    "give class_path, such as pyro.distributions.StudentT, and init_args, such as "
    "{df: 5.0, loc: 0.0, scale: 1.0}"
)


def check_class_path(noise: dict[str, Any], trust_code: bool = False) -> None:
    """Checks the class path and the arguments of a distribution, before anything is imported.

    Args:
        noise: ``class_path`` and, optionally, ``init_args``.
        trust_code: accept any class and any arguments, not only classes of :data:`PACKAGES` and
            numbers.

    Raises:
        ValueError: if the entries are malformed, the class may not be imported, or an argument is
            not a number.
    """
    path, arguments = noise.get("class_path"), noise.get("init_args", {})
    if (
        noise.keys() - {"class_path", "init_args"}
        or not (isinstance(path, str) and _NAME.fullmatch(path))
        or not (isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments))
    ):
        raise ValueError(f"noise {noise!r} names no distribution; {_EXAMPLE}")
    if trust_code:
        return
    if not path.startswith(tuple(f"{package}." for package in PACKAGES)):
        raise ValueError(
            f"noise class_path must lie in {', '.join(PACKAGES)}, got {path!r}; if you trust its "
            "code, add --trust_code true to the command, or trust_code=True to the call"
        )
    for name, value in arguments.items():
        if not isinstance(value, (bool, int, float)):
            raise ValueError(
                f"noise init_args must be numbers, got {name} {value!r}; the distribution of ε has "
                "no dimension"
            )


def build_distribution(
    noise: dict[str, Any], trust_code: bool = False, dtype: torch.dtype | None = None
) -> Distribution:
    """Builds a distribution from its class path and arguments.

    Args:
        noise: ``class_path`` and, optionally, ``init_args``.
        trust_code: as in :func:`check_class_path`.
        dtype: the dtype of its parameters; torch's default if omitted.

    Raises:
        ValueError: as :func:`check_class_path`, and if the class does not exist, is no
            distribution, is abstract, or rejects its arguments.

    Example:
        >>> build_distribution({"class_path": "torch.distributions.Laplace",
        ...                     "init_args": {"loc": 0.0, "scale": 1.0}})
        Laplace(loc: 0.0, scale: 1.0)
    """
    from torch.distributions import Distribution

    check_class_path(noise, trust_code)
    path: str = noise["class_path"]
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"noise {path!r} cannot be built ({error}); {_EXAMPLE}") from None
    if not (inspect.isclass(kind) and issubclass(kind, Distribution)):
        raise ValueError(f"noise {path!r} is no distribution; {_EXAMPLE}")
    if kind.sample is Distribution.sample and kind.rsample is Distribution.rsample:
        raise ValueError(f"noise {path!r} is abstract, it has no draws; {_EXAMPLE}")
    try:
        return kind(**_in_dtype(noise.get("init_args", {}), dtype))
    except Exception as error:  # a distribution checks its arguments in its own way
        raise ValueError(f"noise {path!r} cannot be built ({error}); {_EXAMPLE}") from None


def describe_distribution(distribution: Distribution) -> dict[str, Any]:
    """The class path and arguments from which :func:`build_distribution` builds an equal one.

    Args:
        distribution: a distribution whose arguments are numbers or tensors with shape ().

    Returns:
        ``class_path`` and ``init_args``, without the dtype (:func:`dtype_of`).

    Raises:
        ValueError: if it has other arguments, or its class cannot be imported by a name.

    Example:
        >>> import pyro.distributions as dist
        >>> describe_distribution(dist.Laplace(0.0, 2.0))
        {'class_path': 'pyro.distributions.Laplace', 'init_args': {'loc': 0.0, 'scale': 2.0}}
    """
    from torch import Tensor

    kind = type(distribution)
    path = _path_of(kind)
    distribution = copy.copy(distribution)
    values = {}
    for name in inspect.signature(kind.__init__).parameters:
        value = getattr(distribution, name, None)
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()
        if isinstance(value, (bool, int, float)):
            values[name] = value
    dtype = dtype_of(distribution)
    # A class accepts one of probs and logits, and computes the other.
    for left_out in (("logits", "gate_logits"), ("probs", "gate"), ()):
        given = {name: value for name, value in values.items() if name not in left_out}
        try:
            built = kind(**_in_dtype(given, dtype))
        except Exception:  # a distribution checks its arguments in its own way
            continue
        if _same(built, distribution):
            return {"class_path": path, "init_args": given}
    text = " ".join(repr(distribution).split())
    raise ValueError(f"{text} is not made from numbers alone")


def dtype_of(distribution: Distribution) -> torch.dtype:
    """The dtype of a distribution's parameters; torch's default if it has none."""
    import torch

    distribution = copy.copy(distribution)  # reading an attribute may cache it in the distribution
    values = (getattr(distribution, name, None) for name in distribution.arg_constraints)
    floats = (v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _path_of(kind: type) -> str:
    """The path by which a class can be imported, if possible in Pyro's or torch's public package.

    Raises:
        ValueError: if there is none, as for a class defined in a function or a notebook.
    """
    name = kind.__qualname__
    for module in ("pyro.distributions", "torch.distributions", kind.__module__):
        if getattr(importlib.import_module(module), name, None) is kind and module != "__main__":
            return f"{module}.{name}"
    raise ValueError(f"{kind.__module__}.{name} cannot be imported by its name")


def _in_dtype(arguments: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The arguments with every float replaced by a tensor of the given dtype, if there is one."""
    import torch

    if dtype is None:
        return arguments
    return {
        name: torch.tensor(value, dtype=dtype) if isinstance(value, float) else value
        for name, value in arguments.items()
    }


def _same(one: Distribution, other: Distribution) -> bool:
    """Whether two distributions of the same class have equal parameters, moments and shapes."""
    import torch

    for name in (*other.arg_constraints, "mean", "variance"):
        try:
            a, b = (torch.as_tensor(getattr(each, name)).cpu() for each in (one, other))
        except NotImplementedError:
            continue
        alike = a.dtype == b.dtype and a.shape == b.shape
        if not (alike and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)):
            return False
    return one.batch_shape == other.batch_shape and one.event_shape == other.event_shape
