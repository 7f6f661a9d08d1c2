"""Names of modules and sites in a Pyro program, and warnings where they clash."""

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
from pyro.poutine import Trace
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

__all__ = [
    "claim_name",
    "is_conditioned",
    "is_foreign",
    "is_issued",
    "repeat_suffix",
    "trains_by_svi",
    "watched",
]


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
    nodes = _traced() or {}

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

    Raises:
        ValueError: if a later call's site is given, as by ``poutine.replay``, and there is no trace
            by which calls are counted.
    """
    nodes = _traced()
    if nodes is None:
        _refuse_uncounted(site)
        return ""
    suffixes = ("" if number == 0 else f"__{number}" for number in count())
    return next(suffix for suffix in suffixes if f"{site}{suffix}" not in nodes)


def is_issued(site: str) -> bool:
    """Whether the program that is being traced has issued a site."""
    return site in (_traced() or ())


def _traced() -> Any:
    """The nodes of the innermost trace that is being recorded, None if there is none."""
    traces = [handler for handler in _PYRO_STACK if isinstance(handler, TraceMessenger)]
    return traces[-1].trace.nodes if traces else None


def _refuse_uncounted(site: str) -> None:
    """Raises ValueError if a later call's site is given, and no trace counts the calls."""
    later = f"{site}__1"
    for handler in _PYRO_STACK:
        values = (getattr(handler, name, None) for name in ("trace", "data"))
        if any(isinstance(given, (dict, Trace)) and later in given for given in values):
            raise ValueError(
                f"{later!r} is given to a program that no trace records, so a noisy RNN's later "
                "calls would take the values of its first; run it as "
                "poutine.trace(program).get_trace(...)"
            )


def is_conditioned(site: str) -> bool:
    """Whether a surrounding ``poutine.condition`` observes a site.

    HMC and NUTS give latent sites their values by the same handler; there they stay latent.
    """
    from pyro.infer.mcmc.util import _PEMaker

    return any(
        isinstance(handler, ConditionMessenger) and site in handler.data for handler in _PYRO_STACK
    ) and not _frame(lambda code: code is _PEMaker._potential_fn.__code__)


def trains_by_svi() -> bool:
    """Whether ``SVI.step`` is running, which trains what the global param store holds."""
    from pyro.infer import SVI  # importing it changes warning filters

    return _frame(lambda code: code is SVI.step.__code__) is not None


def watched(site: str, distribution: Any) -> Any:
    """Warns where a Pyro objective would be wrong for a noise site of this model and guide.

    Either only one of model and guide has the site, so that the objective counts the density of
    the noise in one of them, and Pyro only says that the sites differ. Or the guide gives the noise
    of a whole sequence a distribution without a pathwise gradient. The plate ``time`` then tells
    Pyro that the steps are independent, and Pyro leaves out the effect of an ε on later
    observations.

    Pyro's ELBOs run guide and model in ``get_importance_trace``, which computes the densities when
    both traces are known. Elsewhere nothing is compared.

    Args:
        site: the full name of a noise site that is about to be issued.
        distribution: its distribution, over the units of a layer.

    Returns:
        The distribution, in ``get_importance_trace`` one that looks for its site in both traces.
    """
    if _importance_frame() is None or any(isinstance(one, EnumMessenger) for one in _PYRO_STACK):
        return distribution
    return _Watched(distribution.base_dist, distribution.reinterpreted_batch_ndims, site)


class _Watched(dist.Independent):
    """Noise that compares model and guide when its density is computed."""

    def __init__(self, base: Any, ndims: int, site: str) -> None:
        self.site = site
        super().__init__(base, ndims)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Watched:
        new: _Watched = self._get_checked_instance(  # type: ignore[no-untyped-call]
            _Watched, _instance
        )
        new.site = self.site
        return super().expand(batch_shape, new)  # type: ignore[no-any-return, no-untyped-call]

    def log_prob(self, value: Tensor) -> Tensor:
        frame = _importance_frame()
        if frame is not None and "model_trace" in frame.f_locals:
            model, guide = (frame.f_locals[f"{one}_trace"].nodes for one in ("model", "guide"))
            self._compare(model.get(self.site), guide.get(self.site))
        return super().log_prob(value)  # type: ignore[no-any-return, no-untyped-call]

    def _compare(self, model: Any, guide: Any) -> None:
        latent = model is not None and not model["is_observed"]
        if guide is None:
            if not latent:
                return
            text = (
                f"the guide lacks the noise site {self.site!r}, so the objective counts the "
                "density of its prior alone; use PriorGuide(model), call draw_noise of the "
                "noisy RNN in the guide, or build it with sites=None"
            )
        elif model is None:
            text = (
                f"the noise site {self.site!r} stands in the guide and not in the model, so the "
                "objective counts its density against no prior; build the noisy RNN with "
                "sites=None, whose noise is drawn by torch and is no sample site"
            )
        elif not latent:
            text = (
                f"the noise site {self.site!r} is observed in the model and drawn by the guide, so "
                "the guide's other sites do not follow from what is observed; run the guide as "
                "poutine.block(poutine.condition(guide, data), hide=list(data))"
            )
        elif _takes_steps_for_independent(guide):
            text = (
                f"the guide's distribution of {self.site!r} has no pathwise gradient, and the "
                "plate time hides from Pyro that later observations depend on it, so the guide's "
                "gradient is biased; build the noisy RNN with sites='timestep'"
            )
        else:
            return
        warnings.warn(text, stacklevel=2)


def _takes_steps_for_independent(guide: Any) -> bool:
    in_time = any(frame.dim == -2 for frame in guide["cond_indep_stack"])
    return in_time and not guide["fn"].has_rsample


def _importance_frame() -> Any:
    from pyro.infer.enum import get_importance_trace

    return _frame(lambda code: code is get_importance_trace.__code__)


def _frame(wanted: Callable[[CodeType], bool]) -> Any:
    """The nearest frame of the call stack that runs a given function."""
    frame: Any = sys._getframe(1)
    while frame is not None and not wanted(frame.f_code):
        frame = frame.f_back
    return frame
