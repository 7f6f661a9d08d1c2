"""Names of modules and sites inside a Pyro program, and what goes wrong with them unnoticed."""

from __future__ import annotations

import re
import sys
import warnings
from itertools import count
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

__all__ = ["claim_name", "is_foreign", "repeat_suffix", "warn_of_unmatched_sites"]


def is_foreign(name: str, parameter: Tensor) -> bool:
    """Whether the global param store holds another tensor under a parameter's name."""
    stored = pyro.get_param_store()._params.get(name)
    return stored is not None and stored.data_ptr() != parameter.data_ptr()


def claim_name(module: PyroModule, parameter: str) -> None:
    """Gives a nameless root module a name of its own where another one has registered first.

    A module inside a plain ``nn.Module`` has no name, so two of them would share their parameters
    and sites. The first keeps the bare names; the next become ``noisy_lstm_1`` and so on.

    Args:
        module: the module, about to run.
        parameter: the name of a parameter that it registers.
    """
    if module._pyro_name or module._pyro_context.active:
        return
    tensor = module._parameters.get(parameter)
    if tensor is None or not is_foreign(parameter, tensor):
        return
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(module).__name__).lower()
    names = (f"{kind}_{number}" for number in count(1))
    module._pyro_name = next(n for n in names if not is_foreign(f"{n}.{parameter}", tensor))


def repeat_suffix(site: str) -> str:
    """What sets the sites of a module's second call in one program apart: ``__1``, ``__2``, ...

    This is the form of ``pyro.contrib.autoname.name_count``. Under ``pyro.contrib.autoname.scope``
    names differ already.

    Args:
        site: the full name of a site that each call issues.
    """
    traces = [handler for handler in _PYRO_STACK if isinstance(handler, TraceMessenger)]
    nodes: Any = traces[-1].trace.nodes if traces else ()
    suffixes = ("" if number == 0 else f"__{number}" for number in count())
    return next(suffix for suffix in suffixes if f"{site}{suffix}" not in nodes)


def warn_of_unmatched_sites(site: str, *, belongs_to_model: bool) -> None:
    """Warns if a noise site stands in one of model and guide, and not in the other.

    Pyro only warns of the difference when it has computed the objective, which then counts the
    noise's density once. Its ELBOs run guide and model in ``get_importance_trace``; anywhere else
    nothing is compared.

    Args:
        site: the full name of a noise site that is about to be issued.
        belongs_to_model: whether a model issues it, also where its guide re-issues it.
    """
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "get_importance_trace":
        frame = frame.f_back
    if frame is None:
        return
    guide = frame.f_locals.get("guide_trace")
    if guide is None and not belongs_to_model:
        warnings.warn(
            f"the noise site {site!r} stands in a guide, so the objective counts its density "
            "against no prior; build the noisy RNN with sites=None, whose noise is drawn by torch",
            stacklevel=2,
        )
    elif guide is not None and site not in guide.nodes:
        warnings.warn(
            f"the guide lacks the noise site {site!r}, so the objective counts the density of its "
            "prior alone; use PriorGuide(model), or build the noisy RNN with sites=None",
            stacklevel=2,
        )
