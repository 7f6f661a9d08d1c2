"""Distributions named in a configuration: which names are accepted, and how they are built.

A configuration can come from a stranger, and importing a module runs it. The name alone therefore
decides what may be imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributions import Distribution

__all__ = ["build_distribution", "check_class_path"]

#: The packages whose distributions can be named without ``--trust_code true``.
PACKAGES = ("torch.distributions", "pyro.distributions", "noisin_pyro")

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_EXAMPLE = (
    "give class_path, such as pyro.distributions.StudentT, and init_args, such as "
    "{df: 5.0, loc: 0.0, scale: 1.0}"
)


def check_class_path(noise: dict[str, Any], trust_code: bool = False) -> None:
    """Refuses a noise by its class path, before anything is imported.

    Args:
        noise: ``class_path`` and, optionally, ``init_args``.
        trust_code: accept any class, not only those of :data:`PACKAGES`.

    Raises:
        ValueError: if there are other entries, or the class may not be imported.
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
            "code, add --trust_code true to the command"
        )
    for name, value in arguments.items():
        if not isinstance(value, (bool, int, float)):
            raise ValueError(
                f"noise init_args must be numbers, got {name} {value!r}; the distribution of ε has "
                "no dimension"
            )


def build_distribution(noise: dict[str, Any], trust_code: bool = False) -> Distribution:
    """The distribution that a class path names.

    Raises:
        ValueError: if the class may not be imported, is missing, is no distribution or is abstract,
            or its arguments do not fit.

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
        return kind(**noise.get("init_args", {}))
    except Exception as error:  # a distribution checks its arguments in its own way
        raise ValueError(f"noise {path!r} cannot be built ({error}); {_EXAMPLE}") from None
