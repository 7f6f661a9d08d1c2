"""Sample sites of a module, which outside a Pyro program are plain draws.

A noisy RNN is also a layer for a plain PyTorch loop. Outside Pyro nothing touches the global param
store, where two modules of the same name would share their parameters.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import pyro
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK, am_i_wrapped
from torch import Tensor, nn
from torch.distributions import transform_to

from noisin_pyro.lengths import Lengths, checked_lengths, length_mask
from noisin_pyro.naming import is_conditioned, is_foreign, is_issued, trains_by_svi, watched

__all__ = [
    "Call",
    "Freezable",
    "Plates",
    "Readout",
    "apart",
    "in_context",
    "own_store",
    "priors_of",
    "read_priors",
]

Plates = tuple[Any, Any]
"""The ``time`` (dim −2) and ``batch`` (dim −1) plates of a model."""

Readout = Literal["noisy", "mean"]
"""What the top layer hands up: its noisy state z, or its mean h. Later steps read z either way."""
READOUTS = get_args(Readout)  # torch.compile cannot always look into a type

P = ParamSpec("P")
T = TypeVar("T")
Module = TypeVar("Module", bound=PyroModule)


@dataclass(frozen=True)
class Call:
    """The decisions of one call, which the outermost module makes for all modules inside it.

    Attributes:
        owner: the outermost module, whose Pyro name prefixes the plates.
        steps: T.
        batch: B.
        noisy: whether noise is drawn, or the mean path z = h runs.
        dropping: whether dropout acts.
        lengths: each sequence's number of steps, with shape (B,).
        active: whether draws are sample sites.
        given: the plates of a surrounding model, not yet entered; the owner's own if None.
        suffix: of all names, in a module's later calls in one program.
        readout: the output of the top layer.
        recorded: whether states are deterministic sites.
    """

    owner: PyroModule
    steps: int
    batch: int
    noisy: bool
    dropping: bool
    lengths: Tensor | None = None
    active: bool = False
    given: Plates | None = None
    suffix: str = ""
    readout: Readout = "noisy"
    recorded: bool = True

    @classmethod
    def begin(
        cls,
        owner: PyroModule,
        shape: Sequence[int],
        device: torch.device,
        lengths: Lengths | None,
        sample: bool | None,
        *,
        tied: bool,
        plates: Plates | None = None,
        readout: Readout = "noisy",
    ) -> Call:
        """Decides for a call on an input.

        Args:
            owner: the module that is called.
            shape: T and B.
            device: of the input.
            lengths: each sequence's number of steps, with shape (B,).
            sample: True draws noise, False runs the mean path; None draws while training.
            tied: whether dropout's masks belong to the noise, and are drawn whenever it is.
            plates: those of a surrounding model.
            readout: the output of the top layer.

        Raises:
            ValueError: if the lengths do not fit or the readout is unknown.
        """
        steps, batch = shape
        if readout not in READOUTS:
            raise ValueError(f"readout must be 'noisy' or 'mean', got {readout!r}")
        if lengths is not None:
            # bytes would index as a mask
            lengths = checked_lengths(lengths, steps, batch).to(device, torch.long)
        noisy = owner.training if sample is None else sample
        dropping = noisy if tied else owner.training
        active = am_i_wrapped()
        decided = (noisy, dropping, lengths, active, plates)
        return cls(owner, steps, batch, *decided, readout=readout)

    def without_sites(self) -> Call:
        """The call with noise that is drawn by torch and is no sample site."""
        return replace(self, active=False)

    def without_records(self) -> Call:
        """The call without deterministic sites."""
        return replace(self, recorded=False)

    @cached_property
    def mask(self) -> Tensor | None:
        """True where a step lies within its sequence, with shape (T, B)."""
        return None if self.lengths is None else length_mask(self.lengths, self.steps)

    @cached_property
    def plates(self) -> Plates | None:
        """The plates of all sites, None outside Pyro; the owner's own are made when first read.

        A batch plate that the user has entered takes the place of ours.
        """
        if not self.active or self.given is not None:
            return self.given if self.active else None
        entered = {m.dim: m for m in _PYRO_STACK if isinstance(m, IndepMessenger)}
        time = self._plate("time", self.steps, -2)
        if -1 not in entered:
            return time, self._plate("batch", self.batch, -1)
        size = getattr(entered[-1], "subsample_size", entered[-1].size)
        if size != self.batch:
            raise ValueError(
                f"the plate {entered[-1].name!r} entered at dim=-1 has size {size}, but the input "
                f"has {self.batch} sequences; a plate around a noisy RNN must be its batch"
            )
        return time, nullcontext()

    def _plate(self, name: str, size: int, dim: int) -> Any:
        """A plate of the owner; entered once more if its draw in this program has made it."""
        name = self.name(self.owner, name)
        again = is_issued(name)
        return IndepMessenger(name, size, dim) if again else pyro.plate(name, size, dim=dim)

    def emit(self, module: PyroModule, name: str, distribution: Any, obs: Tensor | None) -> Tensor:
        """An observation at each step of each sequence, with batch shape (\\*S, T, B).

        Its density in the padding counts for nothing.
        """
        if not self.active:
            return distribution() if obs is None else obs
        return _sample(self.name(module, name), distribution, self.plates or (), self.mask, obs)

    def sample(self, module: PyroModule, name: str, distribution: Any) -> Tensor:
        """Noise at each step of each sequence, with batch shape (\\*S, T, B)."""
        entered = [m for m in _PYRO_STACK if isinstance(m, IndepMessenger) and m.dim == -2]
        if self.active and entered:
            raise ValueError(
                f"the plate {entered[0].name!r} entered at dim=-2 is where a noisy RNN puts its "
                "time steps; call the RNN before you enter it, with plates=(time, batch) if its "
                "noise is to be in your plates"
            )
        return self._noise(module, name, distribution, self.plates or (), self.mask)

    def sample_once(self, module: PyroModule, name: str, distribution: Any) -> Tensor:
        """Noise of each sequence, with batch shape (\\*S, 1, B)."""
        return self._noise(module, name, distribution, (self.plates or ())[1:], None)

    def sample_step(self, module: PyroModule, name: str, distribution: Any, step: int) -> Tensor:
        """Noise at one step of each sequence, with batch shape (\\*S, 1, B)."""
        mask = None if self.mask is None else self.mask[step : step + 1]
        return self._noise(module, name, distribution, (self.plates or ())[1:], mask)

    def record(self, module: PyroModule, name: str, value: Tensor) -> None:
        """A deterministic site for z or h, with shape (\\*S, T, B, H); nothing reads it back."""
        if self.plates is not None and self.recorded:
            time, batch = self.plates
            with time, batch:
                _record(self.name(module, name), value, 1)

    def record_state(self, module: PyroModule, name: str, value: Tensor) -> None:
        """A deterministic site for a final state, with shape (\\*S, L, B, H).

        It does not stand in the ``time`` plate. A time plate in which every site stands would
        tell Pyro that the steps of a sequence are independent, and the importance weights of
        ``RenyiELBO`` would be taken per step instead of per sequence.

        It stands in a plate of one step in its place, ``end``. Pyro puts vectorised particles left
        of the plates that it sees, and a model with a site per timestep may have no other at
        dim −2.
        """
        if self.plates is not None and self.recorded:
            value = value.movedim(-3, -2).unsqueeze(-4)  # (*S, 1, B, L, H)
            with IndepMessenger(self.name(module, "end"), 1, dim=-2), self.plates[1]:
                _record(self.name(module, name), value, 2)

    def name(self, module: PyroModule, name: str) -> str:
        """A site's full name."""
        return f"{module._pyro_get_fullname(name)}{self.suffix}"

    def _noise(
        self,
        module: PyroModule,
        name: str,
        distribution: Any,
        plates: Sequence[Any],
        mask: Tensor | None,
    ) -> Tensor:
        """A noise site, which outside Pyro is a plain draw.

        Latent noise in the padding keeps its prior density, which a prior guide cancels. Without
        it an automatic guide could raise its entropy there without bound, and HMC would sample
        from an improper density. The padding is masked where noise is observed, and where its
        gradient needs the score function, to which the padding would only add variance.
        """
        if not self.active:
            return distribution()  # type: ignore[no-any-return]
        full = self.name(module, name)
        if mask is not None and distribution.has_rsample and not is_conditioned(full):
            mask = None
        return _sample(full, watched(full, distribution), plates, mask)


def _sample(
    name: str,
    distribution: Any,
    plates: Sequence[Any],
    mask: Any,
    obs: Tensor | None = None,
) -> Tensor:
    with ExitStack() as stack:
        for plate in plates:
            stack.enter_context(plate)
        if mask is not None:
            stack.enter_context(poutine.mask(mask=mask))
        return pyro.sample(name, distribution, obs=obs)


def _record(name: str, value: Tensor, event_dim: int) -> None:
    """A deterministic site, which a guide that runs the RNN may have and its model need not.

    To Pyro it is auxiliary; otherwise it would warn of each such guide, because it does not count
    the deterministic sites of the model.
    """
    with poutine.infer_config(config_fn=lambda _: {"is_auxiliary": True}):
        pyro.deterministic(name, value, event_dim=event_dim)


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
