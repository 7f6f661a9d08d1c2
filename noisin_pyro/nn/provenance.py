"""Pyro's provenance tracking through ``autograd.Function``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.runtime import am_i_wrapped

__all__ = ["tracked"]

P = ParamSpec("P")
T = TypeVar("T")


def tracked(kernel: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a kernel and marks all its results as depending on all its arguments.

    For ``TraceGraph_ELBO`` and ``pyro.render_model`` Pyro marks each tensor with the sites from
    which it was computed. torch's functions pass the marks on, but an ``autograd.Function`` loses
    them.

    Args:
        kernel: a function of tensors and of tuples of tensors.
        *args, **kwargs: its arguments.
    """
    if not am_i_wrapped():
        return kernel(*args, **kwargs)
    given: Any = [args, kwargs]
    sites = get_provenance(given)
    if not sites:
        return kernel(*args, **kwargs)
    args, kwargs = detach_provenance(given)
    results: T = track_provenance(kernel(*args, **kwargs), sites)
    return results
