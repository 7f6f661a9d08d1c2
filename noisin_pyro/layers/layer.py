"""Layers over a whole sequence, by the fastest exact way that the cell and the noise allow.

    recurrent noise     cell                         backend
    none                tanh, relu, lstm, gru        torch's kernel
    none or additive    tanh, relu, sigmoid, lstm    :mod:`.folding`, while its product is small
    any                 all                          the cell's own :meth:`~.Cell.run`

``noise_to="output"`` leaves the recurrence without noise, whatever the noise. Everything here is
plain torch, and nothing is drawn but dropout's masks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.cells.base import Cell, State
from noisin_pyro.kernels.mapped import is_mapped
from noisin_pyro.kernels.onednn import FEWEST, packs
from noisin_pyro.layers.folding import fold
from noisin_pyro.lengths import last_step, length_mask

__all__ = ["NoiseTo", "add_noise", "clean_layers", "dropout", "noisy_layer", "under_vmap"]

NoiseTo = Literal["both", "output", "recurrence", "weights"]
"""Where the noise goes: both, output, recurrence, or what the recurrent weights read."""

# Particles S lead every shape and are folded into the batch for the kernels:
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
    """All layers without noise, in one call of the kernel of a cell that has one.

    Args:
        cell: a cell with a kernel.
        x: the input, with shape (\\*S, T, B, I).
        state: the start, each part with shape (\\*S, D·L, B, H), D being 2 if ``bidirectional``.
        layers: the weights of the L layers, of both directions in turn.
        lengths: each sequence's number of steps, with shape (B,).
        dropout: probability of zeroing, between layers, while ``training``.
        training: whether dropout acts.
        bidirectional: whether every layer has a second direction.

    Returns:
        The top layer's h with shape (\\*S, T, B, D·H), 0 past a sequence's end, and the final
        state.
    """
    lead, batch = _lead(x, *state), x.shape[-2]
    x, lengths = _flat(x, lead, x.shape[-3], batch), _repeated(lengths, lead)
    start = _flat_state(state, lead, len(layers), batch)
    h, final = cell.deterministic(x, start, layers, lengths, dropout, training, bidirectional)
    return _deep(h, lead, batch), tuple(_deep(part, lead, batch) for part in final)


def under_vmap(x: Tensor, state: State, layers: list[Any], add: Tensor | None = None) -> bool:
    """Whether ``torch.func.vmap`` leaves a call without torch's kernels, and with the loop."""
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
    """One layer whose noise z = h · mult + add is known for all steps.

    Args:
        cell: the transition.
        x: the input, with shape (\\*S, T, B, I).
        state: the start, each part with shape (\\*S, 1, B, H).
        weights: the layer's weights.
        mult: with shape (\\*S, T or 1, B, H), or None for 1.
        add: likewise, or None for 0.
        lengths: each sequence's number of steps, with shape (B,).
        noise_to: whether the output, the next step, or both read z; the other reads h. With
            ``"weights"`` step t's recurrent weights read h_{t-1} · mult_t + add_t, and nothing else
            is noisy.

    Returns:
        z, or h where the output reads no noise, with shape (\\*S, T, B, H), 0 past a sequence's
        end, and the final state, each part with shape (\\*S, 1, B, H).
    """
    lead, (steps, batch) = _lead(x, mult, add, *state), x.shape[-3:-1]
    x, lengths = _flat(x, lead, steps, batch), _repeated(lengths, lead)
    mult = None if mult is None else _flat(mult, lead, steps, batch)
    add = None if add is None else _flat(add, lead, steps, batch)
    start = _flat_state(state, lead, 1, batch)
    if noise_to == "recurrence":
        gates, first = cell.project(x, weights), tuple(part[0] for part in start)
        output, states = cell.scan_clean(gates, first, weights, mult, add)
        final = tuple(last_step(part, lengths) for part in states)
    elif noise_to == "weights":
        gates, first = cell.project(x, weights), tuple(part[0] for part in start)
        output, *clean = _reading(cell, gates, first, weights, mult, add)
        final = tuple(last_step(part, lengths) for part in (output, *clean))
    elif noise_to == "both":
        output, final = _recurrence(cell, x, start, weights, mult, add, lengths)
    else:
        output, final = _recurrence(cell, x, start, weights, None, None, lengths)
        output = add_noise(output, mult, add)
    if lengths is not None:
        output = output.masked_fill(~length_mask(lengths, steps).unsqueeze(-1), 0)
    return _deep(output, lead, batch), tuple(_deep(part, lead, batch) for part in final)


def _reading(
    cell: Cell[Any],
    gates: Tensor,
    state: State,
    weights: Any,
    mult: Tensor | None,
    add: Tensor | None,
) -> State:
    """The clean states of all steps, with noise on what the recurrent weights read.

    Where nothing else reads the state, what step t + 1 reads is step t's z.
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
    """torch's dropout, or with one mask for all steps of a sequence.

    Args:
        x: with shape (\\*S, T, B, F).
        rate: the probability of zeroing.
        active: whether to drop at all.
        tied: whether the mask is one for all steps, with shape (\\*S, 1, B, F).

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
    """z with shape (T, B, H), and the final state, each part with shape (1, B, H)."""
    mapped = under_vmap(x, state, [weights], add)
    if mult is None and add is None and cell.kernel is not None and not mapped:
        z, (_, *clean) = cell.deterministic(x, state, [weights], lengths)
    elif not mapped and _folds(cell, weights, mult, add):
        z, (_, *clean) = fold(cell, x, state, weights, add, lengths)
    else:
        first = tuple(part[0] for part in state)
        z, *parts = cell.run(x, first, weights, mult, add)
        clean = [last_step(part, lengths) for part in parts]
    return z, (last_step(z, lengths), *clean)


def _folds(cell: Cell[Any], weights: Any, mult: Tensor | None, add: Tensor | None) -> bool:
    """Whether the noise can be extra input, and costs less so than in the scan.

    On a GPU, and without oneDNN, it always does. ``torch.func`` is left to folding, whose kernels
    it can differentiate.
    """
    if mult is not None or not cell.folds:
        return False
    if add is None or len(add) < FEWEST or not packs(weights.w_hh):
        return True
    if torch._C._are_functorch_transforms_active():
        return True
    return cell.folding_pays(*add.shape[1:])


def _lead(*parts: Tensor | None) -> torch.Size:
    """The particle dimensions \\*S of tensors with three more."""
    shapes = (part.shape[:-3] for part in parts if part is not None)
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-any-return]


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
