"""The gates of a GRU in its scans: their values, computed in place, and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noisin_pyro.cells.scan import scaled
from noisin_pyro.cells.slopes import sigmoid_slope, tanh_slope
from noisin_pyro.kernels.tanh import tanh

__all__ = ["gate_factors", "gate_parts", "write_gates"]


def gate_parts(gates: Tensor, act: Tensor) -> tuple[Tensor, ...]:
    """The views of two tensors with shape (T, B, 3H) whose rows :func:`write_gates` takes.

    Args:
        gates: W_ih x + b_ih.
        act: the buffer of σ(r), σ(u) and tanh(n).

    Returns:
        r and u, and n, of ``gates``; and r and u, r, u, and n, of ``act``.
    """
    hidden = act.shape[-1] // 3
    return *gates.split([2 * hidden, hidden], -1), act[..., : 2 * hidden], *act.chunk(3, -1)


def write_gates(
    p: tuple[Tensor, ...], n_z: Tensor, parts: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Writes the gates of one step into buffers.

    Args:
        p: W_hh z_{t-1} + b_hh, of r and u with shape (B, 2H), and of n with shape (B, H).
        n_z: the buffer of the latter, with shape (B, H).
        parts: a row of each of the :func:`gate_parts`.

    Returns:
        u and n, with shape (B, H).
    """
    (p_ru, p_n), (gate_ru, gate_n, ru, r, u, n) = p, parts
    torch.add(gate_ru, p_ru, out=ru).sigmoid_()
    tanh(torch.addcmul(gate_n, r, n_z.copy_(p_n), out=n), out=n)
    return u, n


def gate_factors(
    act: Tensor, n_z: Tensor, before: Tensor, mult: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The factors from ∂L/∂z to the gradients of the gates before their nonlinearities.

    Args:
        act, n_z: the buffers of all steps, with shapes (T, B, 3H) and (T, B, H).
        before: the state that u carries on, with shape (T, B, H).
        mult: ∂z/∂h, with shape (T, B, H), or None for 1.

    Returns:
        The factor of n in the input's product, with shape (T, B, H), and those of r, u and n in the
        recurrent product, with shape (T, B, 3, H). The products differ in n alone, because r
        multiplies the recurrent one.
    """
    r, u, n = act.chunk(3, -1)
    factors = act.new_empty(*n.shape[:2], 3, n.shape[2])
    to_r, to_u, to_n_z = factors.unbind(2)
    to_n = scaled(tanh_slope(n).mul_(torch.sub(1, u, out=to_n_z)), mult)
    scaled(sigmoid_slope(u, out=to_u).mul_(torch.sub(before, n, out=to_n_z)), mult)
    sigmoid_slope(r, out=to_r).mul_(n_z).mul_(to_n)
    torch.mul(to_n, r, out=to_n_z)
    return to_n, factors
