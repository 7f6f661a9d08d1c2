"""Layers over a whole sequence, by the fastest exact algorithm for the cell and the noise.

    recurrent noise     cell                         algorithm
    none                tanh, relu, lstm, gru        torch's kernel
    none or additive    tanh, relu, sigmoid, lstm    :mod:`.folding`, if it costs less than a scan
    any                 all                          :meth:`.Cell.run`

With ``noise_to="output"`` the recurrence has no noise. This module does not depend on Pyro, and
draws no random numbers but the masks of dropout.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.base import Cell, State
from noisin_pyro.kernels.mapped import is_forward_mode, is_mapped, needs_plain_torch
from noisin_pyro.layers.folding import fold
from noisin_pyro.lengths import last_step, length_mask

__all__ = ["NoiseTo", "add_noise", "clean_layers", "dropout", "noisy_layer", "is_transformed"]

NoiseTo = Literal["both", "output", "recurrence", "weights"]
"""Where the noise goes: both, output, recurrence, or the operand of the recurrent weights."""

_FEW = 4  # steps below which folding costs no more than a scan

# Particle dimensions *S come first in every shape. The kernels take them as part of the batch:
#
#     x, mult, add    (*S, T or 1, B or 1, F)    ->    (T, S·B, F)
#     h, c            (*S, D·L, B, H)            ->    (D·L, S·B, H)
#     lengths         (B,)                       ->    (S·B,)


def clean_layers(
    cell: Cell[Any],
    x: Tensor,
    state: State,
    layers: list[Any],
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
) -> tuple[Tensor, State]:
    """Runs L layers without noise in one call of torch's kernel.

    Args:
        cell: a cell with a :attr:`~.Cell.kernel`.
        x: the input, with shape (\\*S, T, B, I).
        state: the initial state, each part with shape (\\*S, D·L, B, H); D is 2 if
            ``bidirectional``, otherwise 1.
        layers: the weights of D·L layers, (layer 0 forward, layer 0 backward, layer 1, ...).
        lengths: each sequence's number of steps, with shape (B,), or None for T.
        dropout: the probability of zeroing a unit between layers, while ``training``.
        training: whether dropout acts.
        bidirectional: whether every layer also runs backwards in time.

    Returns:
        The top layer's h with shape (\\*S, T, B, D·H), 0 past a sequence's end, and the final
        state.
    """
    lead, batch = _lead(x, *state), x.shape[-2]
    x, lengths = _flat(x, lead, x.shape[-3], batch), _repeated(lengths, lead)
    start = _flat_state(state, lead, len(layers), batch)
    h, final = cell.deterministic(x, start, layers, lengths, dropout, training, bidirectional)
    return _deep(h, lead, batch), tuple(_deep(part, lead, batch) for part in final)


def is_transformed(
    x: Tensor,
    state: State,
    layers: list[Any],
    add: Tensor | None = None,
    lengths: Tensor | None = None,
) -> bool:
    """Whether torch transforms a call in a way that its fused kernels cannot take.

    They take no tensors that ``vmap`` maps, and, under any transform, no sequences of different
    lengths. In forward mode the LSTM's takes only double precision.

    Args:
        x: the input.
        state: the initial state.
        layers: the weights of each layer, tuples of tensors or modules.
        add: the additive noise.
        lengths: each sequence's number of steps, or None if all have the same.
    """
    if is_forward_mode() or (lengths is not None and torch._C._are_functorch_transforms_active()):
        return True
    weights = [weight for layer in layers if isinstance(layer, tuple) for weight in layer]
    return is_mapped(x, *state, *weights, add)


def noisy_layer(
    cell: Cell[Any],
    x: Tensor,
    state: State,
    weights: Any,
    mult: Tensor | None = None,
    add: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    noise_to: NoiseTo = "both",
) -> tuple[Tensor, State]:
    """Runs one layer with noise z = h · mult + add that is already drawn for all steps.

    Args:
        cell: the transition.
        x: the input, with shape (\\*S, T, B, I).
        state: the initial state, each part with shape (\\*S, 1, B, H).
        weights: the layer's weights.
        mult: the factor, with shape (\\*S, T or 1, B, H), or None for 1.
        add: the summand, with shape (\\*S, T or 1, B, H), or None for 0.
        lengths: each sequence's number of steps, with shape (B,), or None for T.
        noise_to: ``"output"`` makes z the layer's output and h the state that the next step reads,
            ``"recurrence"`` the reverse, and ``"both"`` makes both z. With ``"weights"`` the
            recurrent weights of step t multiply h_{t-1} · mult_t + add_t, and all else is clean.

    Returns:
        The layer's output, with shape (\\*S, T, B, H) and 0 past a sequence's end, and the final
        state, each part with shape (\\*S, 1, B, H).
    """
    lead, (steps, batch) = _lead(x, mult, add, *state), x.shape[-3:-1]
    x, lengths = _flat(x, lead, steps, batch), _repeated(lengths, lead)
    mult = None if mult is None else _flat(mult, lead, steps, batch)
    add = None if add is None else _flat(add, lead, steps, batch)
    start = _flat_state(state, lead, 1, batch)
    if noise_to in ("recurrence", "weights"):
        gates, first = cell.project(x, weights), tuple(part[0] for part in start)
        if noise_to == "recurrence":
            output, states = cell.scan_clean(gates, first, weights, mult, add)
        else:
            states = _scan_reading(cell, gates, first, weights, mult, add)
            output = states[0]
        final = tuple(last_step(part, lengths) for part in states)
    elif noise_to == "both":
        output, final = _recurrence(cell, x, start, weights, mult, add, lengths)
    else:
        output, final = _recurrence(cell, x, start, weights, None, None, lengths)
        output = add_noise(output, mult, add)
    if lengths is not None:
        output = output.masked_fill(~length_mask(lengths, steps).unsqueeze(-1), 0)
    return _deep(output, lead, batch), tuple(_deep(part, lead, batch) for part in final)


def _scan_reading(
    cell: Cell[Any],
    gates: Tensor,
    state: State,
    weights: Any,
    mult: Tensor | None,
    add: Tensor | None,
) -> State:
    """:meth:`.Cell.scan_reading`, by the faster ``scan_clean`` where the cell allows it.

    That is where the state enters through the recurrent weights alone. Then m_{t+1} h_t + a_{t+1}
    is the noisy state z_t of a layer with the noise shifted by one step.
    """
    if not cell.weights_alone:
        return cell.scan_reading(gates, state, weights, mult, add)
    h, *clean = state
    first = add_noise(h, *(None if part is None else part[0] for part in (mult, add)))
    after = None if mult is None else torch.cat([mult[1:], torch.ones_like(mult[:1])])
    plus = None if add is None else torch.cat([add[1:], torch.zeros_like(add[:1])])
    output, (_, *parts) = cell.scan_clean(gates, (first, *clean), weights, after, plus)
    return (output, *parts)


def add_noise(h: Tensor, mult: Tensor | None, add: Tensor | None) -> Tensor:
    """z = h · mult + add, either of which may be None."""
    z = h if mult is None else h * mult
    return z if add is None else z + add


def dropout(x: Tensor, rate: float, active: bool, tied: bool) -> Tensor:
    """torch's dropout, optionally with the same mask in all steps of a sequence.

    Args:
        x: the features, with shape (\\*S, T, B, F).
        rate: the probability of zeroing a feature.
        active: whether dropout acts.
        tied: whether all steps share a mask, with shape (\\*S, 1, B, F).

    Example:
        >>> x = dropout(torch.ones(5, 2, 3), 0.5, active=True, tied=True)
        >>> bool((x == x[0]).all())
        True
    """
    if not tied or not active or not rate:
        return F.dropout(x, rate, active)
    return x * F.dropout(torch.ones_like(x[..., :1, :, :]), rate)


def _recurrence(
    cell: Cell[Any],
    x: Tensor,
    state: State,
    weights: Any,
    mult: Tensor | None,
    add: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, State]:
    """Runs a layer whose output and state are both z, by the first algorithm that applies.

    The arguments are those of :func:`noisy_layer` without the dimensions \\*S.

    Returns:
        z with shape (T, B, H), and the final state, each part with shape (1, B, H).
    """
    transformed = is_transformed(x, state, [weights], add, lengths)
    kernel = cell.kernel is not None and not transformed
    without = mult is None and add is None
    if kernel and (without or (len(x) == 1 and _was_measured(weights.w_hh))):
        # No step reads the noise of the last one, so one step is torch's kernel and noise after it.
        h, (_, *clean) = cell.deterministic(x, state, [weights], lengths)
        z = add_noise(h, mult, add)
    elif not transformed and _folds(cell, weights, mult, add):
        z, (_, *clean) = fold(cell, x, state, weights, add, lengths)
    else:
        first = tuple(part[0] for part in state)
        z, *parts = cell.run(x, first, weights, mult, add)
        clean = [last_step(part, lengths) for part in parts]
    return z, (last_step(z, lengths), *clean)


def _folds(cell: Cell[Any], weights: Any, mult: Tensor | None, add: Tensor | None) -> bool:
    """Whether the noise can be folded into the input, and is.

    :meth:`.Cell.folding_pays` decides for single and double precision on a CPU, where both were
    measured. Elsewhere it is folded: on a GPU, where a scan launches many kernels, in half
    precision, and under ``torch.func`` and ``torch.jit.trace``, where a scan is the readable loop.
    """
    if mult is not None or not cell.folds:
        return False
    if add is None or len(add) < _FEW or not _was_measured(weights.w_hh):
        return True
    return cell.folding_pays(*add.shape[1:])


def _was_measured(weight: Tensor) -> bool:
    """Whether the times that decide between algorithms hold for a recurrent weight."""
    if needs_plain_torch():
        return False
    plain = type(weight) in (Tensor, torch.nn.Parameter) and weight.device.type == "cpu"
    return plain and weight.dtype in (torch.float32, torch.float64)


def _lead(*parts: Tensor | None) -> torch.Size:
    """The common particle dimensions \\*S of tensors with three further dimensions."""
    shapes = {part.shape[:-3] for part in parts if part is not None}
    # torch broadcasts in Python, which takes longer than a small product
    return shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)


def _flat(part: Tensor, lead: torch.Size, rows: int, batch: int) -> Tensor:
    """(\\*S, rows or 1, B or 1, F) -> (rows, S·B, F)."""
    part = part.expand(*lead, rows, batch, part.shape[-1])
    return part.movedim(-3, 0).reshape(rows, -1, part.shape[-1]) if lead else part


def _flat_state(state: State, lead: torch.Size, layers: int, batch: int) -> State:
    return tuple(_flat(part, lead, layers, batch) for part in state)


def _deep(part: Tensor, lead: torch.Size, batch: int) -> Tensor:
    """(rows, S·B, F) -> (\\*S, rows, B, F)."""
    return part.unflatten(1, (*lead, batch)).movedim(0, -3) if lead else part


def _repeated(lengths: Tensor | None, lead: torch.Size) -> Tensor | None:
    """(B,) -> (S·B,)."""
    return lengths.repeat(lead.numel()) if lengths is not None and lead else lengths
