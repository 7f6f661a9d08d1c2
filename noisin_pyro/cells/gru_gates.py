"""The gates of a GRU in its scans: their values, computed in place, and their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from noisin_pyro.cells.scan import scaled

__all__ = ["gate_factors", "write_gates"]


def write_gates(gate: Tensor, p: Tensor, act: Tensor, n_z: Tensor) -> tuple[Tensor, Tensor]:
    """Writes the gates of one step into buffers.

    Args:
        gate: W_ih x_t + b_ih, with shape (B, 3H).
        p: W_hh z_{t-1} + b_hh, with shape (B, 3H).
        act: the buffer of σ(r), σ(u) and tanh(n), with shape (B, 3H).
        n_z: the buffer of W_hn z_{t-1} + b_hn, with shape (B, H).

    Returns:
        u and n, views of ``act`` with shape (B, H).
    """
    hidden = n_z.shape[-1]
    ru = torch.add(gate[:, : 2 * hidden], p[:, : 2 * hidden], out=act[:, : 2 * hidden])
    r, u = ru.sigmoid_().chunk(2, 1)
    n_z.copy_(p[:, 2 * hidden :])
    n = torch.addcmul(gate[:, 2 * hidden :], r, n_z, out=act[:, 2 * hidden :]).tanh_()
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
    to_n = scaled((1 - u) * (1 - n * n), mult)
    to_u = scaled((before - n) * u * (1 - u), mult)
    to_r = to_n * n_z * r * (1 - r)
    return to_n, torch.stack([to_r, to_u, to_n * r], 2)
