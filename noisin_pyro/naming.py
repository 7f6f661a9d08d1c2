"""Names of modules and sites inside a Pyro program, and what goes wrong with them unnoticed."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from itertools import count
from types import CodeType
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

__all__ = ["claim_name", "is_foreign", "repeat_suffix", "trains_by_svi", "watched"]


def is_foreign(name: str, parameter: Tensor) -> bool:
    """Whether the global param store holds another tensor under a parameter's name."""
    stored = pyro.get_param_store()._params.get(name)
    return stored is not None and stored.data_ptr() != parameter.data_ptr()


def claim_name(module: PyroModule, parameter: str, tensor: Tensor | None) -> None:
    """Gives a nameless root module a name of its own if another one runs in the same program.

    A module inside a plain ``nn.Module`` has no name, so two of them would share their parameters
    and sites. The first keeps the bare names; the next become ``noisy_lstm_1`` and so on.

    Args:
        module: the module, about to run.
        parameter: the name of a parameter that it registers, as the param store has it.
        tensor: that parameter; None if there is none, and then nothing is done.
    """
    if module._pyro_name or module._pyro_context.active or tensor is None:
        return
    nodes = _traced()

    def is_taken(name: str) -> bool:
        return name in nodes and nodes[name]["value"].data_ptr() != tensor.data_ptr()

    if is_taken(parameter):
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(module).__name__).lower()
        names = (f"{kind}_{number}" for number in count(1))
        free = next(name for name in names if not is_taken(f"{name}.{parameter}"))
        module._pyro_set_supermodule(free, module._pyro_context)


def repeat_suffix(site: str) -> str:
    """What sets the sites of a module's second call in one program apart: ``__1``, ``__2``, ...

    This is the form of ``pyro.contrib.autoname.name_count``. Under ``pyro.contrib.autoname.scope``
    names differ already.

    Args:
        site: the full name of a site that each call issues.
    """
    nodes = _traced()
    suffixes = ("" if number == 0 else f"__{number}" for number in count())
    return next(suffix for suffix in suffixes if f"{site}{suffix}" not in nodes)


def _traced() -> Any:
    """The nodes of the innermost trace that is being recorded."""
    traces = [handler for handler in _PYRO_STACK if isinstance(handler, TraceMessenger)]
    return traces[-1].trace.nodes if traces else {}


def trains_by_svi() -> bool:
    """Whether ``SVI.step`` is running, which trains what the global param store holds."""
    from pyro.infer import SVI  # importing it changes warning filters

    return _frame(lambda code: code is SVI.step.__code__) is not None


def watched(site: str, distribution: Any) -> Any:
    """Warns if a noise site stands in one of model and guide, and not in the other.

    The objective would then count the noise's density once, and Pyro only says that the sites
    differ. Its ELBOs run guide and model in ``get_importance_trace``, where both traces can be
    looked at: the guide's while the model runs, and the model's when the guide's densities are
    computed. Anywhere else nothing is compared.

    Args:
        site: the full name of a noise site that is about to be issued.
        distribution: its distribution, over the units of a layer.

    Returns:
        The same distribution, in a guide one that looks for its site in the model's trace.
    """
    frame = _importance_frame()
    if frame is None or any(isinstance(handler, EnumMessenger) for handler in _PYRO_STACK):
        return distribution
    guide = frame.f_locals.get("guide_trace")
    if guide is None:
        return _GuideNoise(distribution.base_dist, distribution.reinterpreted_batch_ndims, site)
    if site not in guide.nodes:
        warnings.warn(
            f"the guide lacks the noise site {site!r}, so the objective counts the density of its "
            "prior alone; use PriorGuide(model), or build the noisy RNN with sites=None",
            stacklevel=2,
        )
    return distribution


class _GuideNoise(dist.Independent):
    """Noise in a guide: when its density is computed, its site must stand in the model too."""

    def __init__(self, base: Any, ndims: int, site: str) -> None:
        self.site = site
        super().__init__(base, ndims)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _GuideNoise:
        new: _GuideNoise = self._get_checked_instance(  # type: ignore[no-untyped-call]
            _GuideNoise, _instance
        )
        new.site = self.site
        return super().expand(batch_shape, new)  # type: ignore[no-any-return, no-untyped-call]

    def score_parts(self, *args: Any, **kwargs: Any) -> Any:
        traces = _importance_frame()
        if traces is not None and self.site not in traces.f_locals["model_trace"].nodes:
            warnings.warn(
                f"the noise site {self.site!r} stands in the guide and not in the model, so the "
                "objective counts its density against no prior; build the noisy RNN with "
                "sites=None, whose noise is drawn by torch and is no sample site",
                stacklevel=2,
            )
        return super().score_parts(*args, **kwargs)  # type: ignore[no-untyped-call]


def _importance_frame() -> Any:
    from pyro.infer.enum import get_importance_trace

    return _frame(lambda code: code is get_importance_trace.__code__)


def _frame(wanted: Callable[[CodeType], bool]) -> Any:
    """The nearest frame of the call stack that runs a given function."""
    frame: Any = sys._getframe(1)
    while frame is not None and not wanted(frame.f_code):
        frame = frame.f_back
    return frame
