"""A user's own cell: any module that is called like ``torch.nn.LSTMCell``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisin_pyro.cells.base import Cell, State, loop_clean
from noisin_pyro.modes import evaluating
from noisin_pyro.noise.base import Range

__all__ = ["Form", "ModuleCell", "form_of"]

EVERYWHERE = Range(-math.inf, math.inf)
ROWS = 7  # of a trial call; no state has so many parts, so none is unpacked from rows
ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)


class Form(NamedTuple):
    """How a module takes and returns its state.

    Attributes:
        sizes: the widths of its parts.
        kind: the class of the tuple that holds them; None for a single tensor.
    """

    sizes: tuple[int, ...]
    kind: type | None

    def pack(self, state: State) -> Any:
        """The state as the module takes it."""
        if self.kind is None:
            return state[0]
        make: Any = getattr(self.kind, "_make", tuple)  # a NamedTuple's constructor
        return make(state)


class ModuleCell(Cell[nn.Module]):
    """(h_t, ...) = module(x_t, (z_{t-1}, ...)), with the module in the place of the weights.

    The module is called once per step, with x of shape (N, I) and every part of the state of shape
    (N, F): particles and sequences are rows, and so is padding. Nothing of it can be computed
    beforehand for all steps, so :meth:`project` is the identity.

    Args:
        name: as the errors call it.
        form: how the module takes its state.
        range: the interval of h, the whole real line if omitted.
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
        # under autocast a module may answer in half precision, whose rounding would add up
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
        """In one loop: a module may draw a dropout mask, which a second step would draw anew."""
        return loop_clean(self, gates, state, weights, mult, add)


@torch.no_grad()
def form_of(module: nn.Module, input_size: int, like: Tensor) -> Form:
    """Finds out how a module takes its state, by a call without a state and one with what it gave.

    If it needs a state, its ``hidden_size`` says how wide, and one tensor and a pair are tried in
    turn. Of a compiled module the plain one is called. The random state of torch, the module's
    training mode and its buffers are left as they were.

    Args:
        module: the module.
        input_size: I.
        like: a tensor whose dtype and device the input gets.

    Raises:
        ValueError: if no call succeeds, or one returns something else than a state.

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
    """A block in which a module is in evaluation mode, and after which it is as it was before.

    That includes its buffers, and what its parts keep from call to call as attributes.
    """
    kept = [
        (vars(part), {name: value for name, value in vars(part).items() if name[:1] != "_"})
        for part in module.modules()
        if not isinstance(part, nn.modules.lazy.LazyModuleMixin)  # which becomes another class
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
        for held, before in kept:
            for name in [name for name in held if name[:1] != "_" and name not in before]:
                del held[name]
            held.update(before)
        for names, name, buffer, copy in buffers:
            names[name] = buffer.copy_(copy)


def _form(module: nn.Module, x: Tensor, state: Any) -> Form:
    """The form of a state that a module returned, if it is one and can be given back to it."""
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
    given = tuple(part.to(x.dtype) for part in parts)
    counted = [part for part in (x, *given) if not part.is_inference()]
    versions = [part._version for part in counted]
    try:
        module(x, form.pack(given))
    except ERRORS as error:
        raise ValueError(
            f"{rule}, got {shapes}, which it does not take as its state ({error}); around a cell "
            "that returns an output beside its state write one that returns the state alone"
        ) from error
    if versions != [part._version for part in counted]:
        raise ValueError(
            f"{type(module).__name__} writes into its input or its state, so that earlier steps "
            "would change; let it return new tensors, as h * a in the place of h.mul_(a)"
        )
    return form
