"""Parameters and priors of a module, which outside a Pyro program leave Pyro's store alone.

A noisy RNN is also a layer for a plain PyTorch loop. Outside Pyro nothing touches the global param
store, where two modules of the same name would share their parameters.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyro
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributions import transform_to

from noisin_pyro.naming import is_foreign, trains_by_svi

__all__ = ["Freezable", "apart", "in_context", "own_store", "priors_of", "read_priors"]

P = ParamSpec("P")
T = TypeVar("T")
Module = TypeVar("Module", bound=PyroModule)


class Freezable:
    """A base, before ``PyroModule``, of modules that outside Pyro never touch the param store.

    ``PyroModule`` makes every ``nn.Parameter`` that it reads a statement, and the param store makes
    whatever it holds require a gradient (pyro issue 3438,
    https://github.com/pyro-ppl/pyro/issues/3438). Here parameters with ``requires_grad=False``
    bypass ``pyro.param``, as ``pyro.module`` has it, and so do all parameters outside Pyro.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if am_i_wrapped():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        # The call of PyroModule would read every parameter as a statement.
        return nn.Module.__call__(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        parameter = own.get("_parameters", {}).get(name)
        if parameter is not None:
            statement = parameter.requires_grad and self._pyro_context.active and am_i_wrapped()
            if not statement:
                return parameter
            self._check_store(name, parameter)
        elif name in own.get("_pyro_params", ()):
            constraint, _ = own["_pyro_params"][name]
            unconstrained = own["_parameters"][f"{name}_unconstrained"]
            if am_i_wrapped():
                if self._pyro_context.active:
                    self._check_store(name, unconstrained)
                return super().__getattr__(name)  # type: ignore[misc]
            value: Any = transform_to(constraint)(unconstrained)
            value.unconstrained = weakref.ref(unconstrained)
            return value
        return super().__getattr__(name)  # type: ignore[misc]

    def _check_store(self, name: str, parameter: Tensor) -> None:
        """Warns once if ``SVI`` would train another module's tensor in place of ours."""
        context: Any = self._pyro_context  # which all parts of a model share
        if hasattr(context, "warned_of_store") or pyro.settings.get("module_local_params"):
            return
        full = self._pyro_get_fullname(name)
        if is_foreign(full, parameter) and trains_by_svi():
            context.warned_of_store = True
            warnings.warn(
                f"the param store holds another tensor under {full!r}, so no parameter of this "
                "model would train under SVI; call pyro.clear_param_store() before it, or give "
                "the model a name= of its own (saved weights go into a fresh model by "
                "load_state_dict, not by the store)",
                stacklevel=3,
            )


def in_context(
    method: Callable[Concatenate[Module, P], T],
) -> Callable[Concatenate[Module, P], T]:
    """A ``pyro_method`` that outside a Pyro program leaves the global param store alone."""

    @wraps(method)
    def call(self: Module, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._pyro_context if am_i_wrapped() else apart(self):
            return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


def apart(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which a call outside Pyro does not touch the global param store.

    It does nothing, so that threads may call a model side by side, unless the model contains a
    ``PyroModule`` of the user, which registers its parameters at each call. Then a temporary store
    replaces the global one during the call, in all threads. Inside Pyro it does nothing.
    """
    registers = not am_i_wrapped() and any(
        isinstance(part, PyroModule) and not isinstance(part, Freezable) and part._parameters
        for part in module.modules()
    )
    return own_store() if registers else nullcontext()


@contextmanager
def own_store() -> Iterator[None]:
    """A temporary param store, in which modules read their own parameters."""
    with pyro.get_param_store().scope():
        yield


def priors_of(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """The attributes with a prior, each a γ or a weight, of a module and its submodules.

    Args:
        module: any module; only ``PyroModule`` parts have priors.

    Returns:
        An iterator over pairs of a part and the name of its attribute.
    """
    for part in module.modules():
        for name in getattr(part, "_pyro_samples", ()):
            yield part, name


def read_priors(priors: Iterable[tuple[Any, str]]) -> None:
    """Draws γ and weights that have priors. Pyro keeps the draws until the end of the call.

    Call it before any plate is entered, or a weight would be drawn for each sequence.
    ``pyro.infer.Predictive`` puts dimensions of size 1 before those of what a guide drew; they are
    dropped, because torch's functions take no such weights.

    Args:
        priors: pairs as :func:`priors_of` yields them.
    """
    for part, name in priors:
        value, prior = getattr(part, name), part._pyro_samples[name]
        if not hasattr(prior, "sample"):  # a function from the module to a distribution
            prior = prior(part)
        shape = value.shape if isinstance(prior, Tensor) else prior.shape()
        if value.dim() > len(shape) and value.numel() == shape.numel():
            part._pyro_context.set(part._pyro_get_fullname(name), value.reshape(shape))
