"""The sample sites of a call, which outside a Pyro program are plain draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import pyro
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK, am_i_wrapped
from torch import Tensor

from noisin_pyro.lengths import Lengths, checked_lengths, length_mask
from noisin_pyro.naming import is_conditioned, is_issued, watched

__all__ = ["Call", "Plates", "Readout"]

Plates = tuple[Any, Any]
"""The ``time`` (dim −2) and ``batch`` (dim −1) plates of a model."""

Readout = Literal["noisy", "mean"]
"""What the top layer hands up: its noisy state z, or its mean h. Later steps read z either way."""
READOUTS = get_args(Readout)  # torch.compile cannot always look into a type


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
