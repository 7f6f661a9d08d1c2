"""The cell around a user's module, which is called like ``torch.nn.LSTMCell``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisin_pyro.cells.base import Cell, State, loop_clean
from noisin_pyro.modes import evaluating
from noisin_pyro.noise.base import Range

__all__ = ["Form", "ModuleCell", "form_of"]

EVERYWHERE = Range(-math.inf, math.inf)
ROWS = 7  # N of a trial call, more than any state has parts: a pair unpacked from rows would fail
ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)


class Form(NamedTuple):
    """The form of the state that a module takes and returns.

    Attributes:
        sizes: the widths of its parts.
        kind: the class of the tuple of parts; None if the state is a single tensor.
    """

    sizes: tuple[int, ...]
    kind: type | None

    def pack(self, state: State) -> Any:
        """The state in the module's form."""
        if self.kind is None:
            return state[0]
        make: Any = getattr(self.kind, "_make", tuple)  # a NamedTuple's constructor
        return make(state)


class ModuleCell(Cell[nn.Module]):
    """(h_t, ...) = module(x_t, (z_{t-1}, ...)); the ``weights`` of this cell are the module.

    The module is called once per step, with x of shape (N, I) and each part of the state of shape
    (N, F). Its N rows are all sequences of all particles, padding included. Nothing can be computed
    for all steps at once, so :meth:`project` is the identity.

    Args:
        name: the cell's name in error messages.
        form: the form of the module's state.
        range: the interval that contains h; the whole real line if omitted.
    """

    def __init__(self, name: str, form: Form, range: Range | None = None) -> None:
        self.name, self.form = name, form
        self.range = EVERYWHERE if range is None else range

    def state_sizes(self, hidden: int) -> tuple[int, ...]:
        return self.form.sizes

    def project(self, x: Tensor, weights: nn.Module) -> Tensor:
        return x

    def step(self, gates: Tensor, state: State, weights: nn.Module) -> State:
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in (gates, *state)))
        x, *rows = (
            part.expand(*lead, part.shape[-1]).reshape(-1, part.shape[-1])
            for part in (gates, *state)
        )
        new = weights(x, self.form.pack(tuple(rows)))
        parts = new if isinstance(new, (tuple, list)) else (new,)
        if [part.shape for part in parts] != [old.shape for old in rows]:
            raise ValueError(
                f"{type(weights).__name__} must return a state shaped as the one it was given, "
                f"{[tuple(old.shape) for old in rows]}, got {[tuple(part.shape) for part in parts]}"
            )
        # Under autocast a module may return half precision, whose rounding adds up over steps.
        parts = tuple(part.to(old.dtype) for part, old in zip(parts, rows))
        return parts if len(lead) == 1 else tuple(part.unflatten(0, lead) for part in parts)

    def scan_clean(
        self,
        gates: Tensor,
        state: State,
        weights: nn.Module,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """As :meth:`.Cell.scan_clean`, in one loop, because the module may contain dropout."""
        return loop_clean(self, gates, state, weights, mult, add)


@torch.no_grad()
def form_of(module: nn.Module, input_size: int, like: Tensor) -> Form:
    """Determines the form of a module's state by trial calls.

    The first call has no state. If it fails and the module has a ``hidden_size``, calls with one
    tensor and with a pair of that width follow. The state that a call returns is then passed to
    another call. A compiled module is called uncompiled. Afterwards torch's random state, and the
    module's training mode, buffers and public attributes, are as before.

    Args:
        module: the module.
        input_size: I.
        like: a tensor with the dtype and device of the input.

    Raises:
        ValueError: if no call succeeds, if a call does not return a state, if the module rejects
            the state that it returned, or if it writes into its arguments.

    Example:
        >>> form_of(nn.LSTMCell(3, 5), 3, torch.zeros(()))
        Form(sizes=(5, 5), kind=<class 'tuple'>)
    """
    module = getattr(module, "_orig_mod", module)
    hidden = getattr(module, "hidden_size", None)
    x = like.new_zeros(ROWS, input_size)
    calls: list[tuple[Any, ...]] = [(x,)]
    if isinstance(hidden, int):
        zeros = like.new_zeros(ROWS, hidden)
        calls += [(x, zeros), (x, (zeros, zeros))]
    errors: list[Exception] = []
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices), _unchanged(module):
        for call in calls:
            try:
                state = module(*call)
            except ERRORS as problem:
                errors.append(problem)
            else:
                return _form(module, x, state)
    reasons = "; ".join(dict.fromkeys(str(error).partition("\n")[0] for error in errors))
    raise ValueError(
        f"{type(module).__name__} could not be called as cell(x) with x of shape "
        f"{tuple(x.shape)}, nor with a state of zeros ({reasons}); a cell is called like "
        "torch.nn.LSTMCell, and one that needs its state needs state_sizes="
    ) from errors[-1]


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Runs a block with a module in evaluation mode, and restores its parts afterwards.

    Restored are their training modes, buffers and public attributes.
    """
    kept = [
        (vars(part), {name: value for name, value in vars(part).items() if name[:1] != "_"})
        for part in module.modules()
        if not isinstance(part, nn.modules.lazy.LazyModuleMixin)  # its first call changes its class
    ]
    buffers = [
        (part._buffers, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        with evaluating(module):
            yield
    finally:
        for attributes, before in kept:
            new = [name for name in attributes if name[:1] != "_" and name not in before]
            for name in new:
                del attributes[name]
            attributes.update(before)
        for registered, name, buffer, copy in buffers:
            registered[name] = buffer.copy_(copy)


def _form(module: nn.Module, x: Tensor, state: Any) -> Form:
    """Checks the state that a module returned for the input x, and determines its form.

    Raises:
        ValueError: if it is not a state, or as :func:`_check_takes` does.
    """
    parts = state if isinstance(state, (tuple, list)) else (state,)
    shapes = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
    rule = (
        f"{type(module).__name__} must return its new state and nothing else, a tensor with shape "
        "(N, H) or a tuple of tensors with shape (N, F) whose first part is h"
    )
    if not parts or not all(isinstance(part, Tensor) and part.dim() == 2 for part in parts):
        raise ValueError(f"{rule}, got {shapes}")
    if any(part.is_complex() for part in parts):
        raise ValueError(f"{rule}, all of them real, got {[str(part.dtype) for part in parts]}")
    kind = type(state) if isinstance(state, tuple) else tuple if len(parts) > 1 else None
    form = Form(tuple(part.shape[1] for part in parts), kind)
    _check_takes(module, form, x, parts, f"{rule}, got {shapes}")
    return form


def _check_takes(
    module: nn.Module, form: Form, x: Tensor, state: Sequence[Tensor], message: str
) -> None:
    """Calls a module with a state that it returned.

    Args:
        module: the module.
        form: the form of its state.
        x: the input, with shape (N, I).
        state: the parts of the state, each with shape (N, F).
        message: the beginning of the error.

    Raises:
        ValueError: if the call fails, or writes into its arguments.
    """
    given = tuple(part.to(x.dtype) for part in state)
    counted = [part for part in (x, *given) if not part.is_inference()]
    versions = [part._version for part in counted]
    try:
        module(x, form.pack(given))
    except ERRORS as error:
        raise ValueError(
            f"{message}, which it does not take as its state ({error}); around a cell "
            "that returns an output beside its state write one that returns the state alone"
        ) from error
    if versions != [part._version for part in counted]:
        raise ValueError(
            f"{type(module).__name__} writes into its input or its state, so that earlier steps "
            "would change; let it return new tensors, as h * a in the place of h.mul_(a)"
        )
