"""A noisy layer over a whole sequence, step by step, with a backward pass written by hand.

Where noise cannot be folded into the input (multiplicative noise; the GRU, whose reset gate
multiplies the recurrent product; the identity cell) or folding costs more (large layers on a
CPU), the recurrence is walked. Only
what must be sequential is in the loop: the input's product is done before it, activation
derivatives before the backward loop, and the recurrent weight's gradient in one product after
it instead of one per step. The readable form is :meth:`.Cell.step`, which also gives the second derivatives.

All noise met here is affine in the state: z_t = h_t · m_t + a_t, either of m and a absent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.cells.cells import GRU, LSTM, Cell, Weights
from noisin_pyro.kernels.onednn import outer, small_products

__all__ = ["scan"]


def scan(
    cell: Cell,
    gates: Tensor,
    z0: Tensor,
    c0: Tensor | None,
    weights: Weights,
    mult: Tensor | None = None,
    add: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Runs a layer over a sequence.

    The recurrence runs in the weights' dtype, under autocast too, because its rounding adds up
    over steps.

    Args:
        cell: the transition.
        gates: the input's part of the gates, with shape (T, B, G·H).
        z0: the carried noisy state, with shape (B, H).
        c0: the carried cell state of an LSTM, with shape (B, H).
        weights: the layer's weights.
        mult: m, with shape (T, B, H), or None for 1.
        add: a, with shape (T, B, H), or None for 0.

    Returns:
        z with shape (T, B, H) and, for an LSTM, c with shape (T, B, H).
    """
    w_hh, b_hh = weights.w_hh, weights.b_hh if isinstance(cell, GRU) else None
    gates, z0 = gates.contiguous(), z0.to(w_hh.dtype)
    c0 = None if c0 is None else c0.to(w_hh.dtype)
    keep = _has_backward(gates, z0, c0, w_hh, b_hh, mult, add)
    way: Any = {LSTM: _LSTMScan, GRU: _GRUScan}.get(type(cell), _ElmanScan)
    z, c, *_ = way.apply(cell, gates, z0, c0, w_hh, b_hh, mult, add, keep)
    return z, c if isinstance(cell, LSTM) else None


def _has_backward(*parts: Tensor | None) -> bool:
    """Whether anything will be differentiated, now or by ``torch.func``."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)


def _workspace(like: Tensor, width: int, keep: bool) -> Tensor:
    """Room for each step's (B, width), with shape (T, B, width).

    All steps share one step's memory unless a backward pass needs what they leave there.
    """
    steps, batch, _ = like.shape
    return like.new_empty(steps if keep else 1, batch, width).expand(steps, -1, -1)


def _noisy(h: Tensor, t: int, mult: Tensor | None, add: Tensor | None, out: Tensor) -> Tensor:
    """z_t = h m_t + a_t, written into ``out``."""
    if mult is None:
        return out.copy_(h) if add is None else torch.add(h, add[t], out=out)
    torch.mul(h, mult[t], out=out)
    return out if add is None else out.add_(add[t])


def _scaled(factor: Tensor, mult: Tensor | None) -> Tensor:
    """∂z/∂h folded into a derivative that multiplies ∂L/∂z."""
    return factor if mult is None else factor.mul_(mult)


def _shifted(first: Tensor, rest: Tensor) -> Tensor:
    """The sequence one step earlier: [first, rest_0, ..., rest_{T-2}]."""
    return torch.cat([first.unsqueeze(0), rest[:-1]])


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {  # in place
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "identity": lambda a: a,
}
_SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {  # their derivatives, in terms of h
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).to(h.dtype),
    "sigmoid": lambda h: h * (1 - h),
    "identity": torch.ones_like,
}

# Each function returns, after what its caller wants, what its backward pass needs: a function
# whose forward pass knows no context also works under torch.func. All three take the same
# arguments: the cell, seven tensors (gates, z0, c0, w_hh, b_hh, mult, add) and ``keep``.


def _save(ctx: Any, inputs: Any, wanted: Sequence[Tensor], needed: Sequence[Tensor]) -> None:
    """Keeps the seven and what the forward pass returned."""
    ctx.cell = inputs[0]
    ctx.mark_non_differentiable(*needed)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[1:8], *wanted, *needed)


def _saved(ctx: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """What :func:`_save` kept."""
    return ctx.saved_tensors[:7], ctx.saved_tensors[7:]


def _twice_differentiable(by_hand: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass by hand or, where a gradient of the gradient is wanted, torch's own through
    :meth:`~noisin_pyro.cells.cells.Cell.step`."""

    @functools.wraps(by_hand)
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled() or all(grad is None for grad in grads):
            return by_hand(ctx, *grads)
        inputs, needed = _saved(ctx)[0], ctx.needs_input_grad[1:8]
        wanted = [part for part, needs in zip(inputs, needed) if needs]
        with torch.autocast(inputs[0].device.type, enabled=False):
            outputs = _readable(ctx.cell, *inputs)
            outs, given = zip(*((o, g) for o, g in zip(outputs, grads) if g is not None))
            gradients = torch.autograd.grad(
                outs, wanted, given, create_graph=True, allow_unused=True
            )
        found = iter(gradients)
        return None, *(next(found) if needs else None for needs in needed), None

    return backward


def _readable(
    cell: Cell,
    gates: Tensor,
    z: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    mult: Tensor | None,
    add: Tensor | None,
) -> list[Tensor]:
    """The same sequence step by step: z and, for an LSTM, c."""
    zs: list[Tensor] = []
    cs: list[Tensor] = []
    for t, gate in enumerate(gates.unbind(0)):
        h, c = cell.step(gate, z, c, Weights(w_hh, w_hh, None, b_hh))
        z = h if mult is None else h * mult[t]
        z = z if add is None else z + add[t]
        zs.append(z)
        cs += [] if c is None else [c]
    return [torch.stack(part) for part in (zs, cs) if part]


class _ElmanScan(torch.autograd.Function):
    @staticmethod
    def forward(
        cell: Cell,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        h, z = _workspace(gates, gates.shape[-1], keep), torch.empty_like(gates)
        act, previous = _ACTIVATIONS[cell.name], z0
        product = small_products(w_hh, len(z0), len(gates))
        for t, gate in enumerate(gates.unbind(0)):
            act(product(gate, previous, h[t]))
            previous = _noisy(h[t], t, mult, add, z[t])
        return z, h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, h = output
        _save(ctx, inputs, (z,), (h,))

    @staticmethod
    @_twice_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (_, z0, _, w_hh, _, mult, _), (z, h) = _saved(ctx)
        grad = torch.zeros_like(h) if grad is None else grad
        slope = _scaled(_SLOPES[ctx.cell.name](h), mult)
        dz, dgates = torch.empty_like(h), torch.empty_like(h)
        product = small_products(w_hh.t(), len(z0), len(h))
        torch.mul(dz[-1].copy_(grad[-1]), slope[-1], out=dgates[-1])
        for t in range(len(h) - 2, -1, -1):
            product(grad[t], dgates[t + 1], dz[t])
            torch.mul(dz[t], slope[t], out=dgates[t])
        return (
            None,
            dgates,
            dgates[0] @ w_hh if ctx.needs_input_grad[2] else None,
            None,
            outer(dgates.flatten(0, 1), _shifted(z0, z).flatten(0, 1)),
            None,
            dz * h if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )


class _LSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(
        cell: Cell,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert c0 is not None
        steps, batch, width = gates.shape
        hidden = width // 4
        act = _workspace(gates, width, keep)  # σ(i), σ(f), tanh(g), σ(o)
        tanh_c = _workspace(gates, hidden, keep)
        c, z = (gates.new_empty(steps, batch, hidden) for _ in range(2))
        h = gates.new_empty(batch, hidden)
        z_prev, c_prev = z0, c0
        product = small_products(w_hh, batch, steps)
        for t, gate in enumerate(gates.unbind(0)):
            a = product(gate, z_prev, act[t])
            a[:, : 2 * hidden].sigmoid_()
            i, f, g, o = a.chunk(4, 1)
            g.tanh_()
            o.sigmoid_()
            c_prev = torch.mul(f, c_prev, out=c[t]).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_prev, out=tanh_c[t]), out=h)
            z_prev = _noisy(h, t, mult, add, z[t])
        return z, c, act, tanh_c

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, c, act, tanh_c = output
        _save(ctx, inputs, (z, c), (act, tanh_c))

    @staticmethod
    @_twice_differentiable
    def backward(ctx: Any, grad_z: Tensor | None, grad_c: Tensor | None, *_: Any) -> Any:
        (_, z0, c0, w_hh, _, mult, _), (z, c, act, tanh_c) = _saved(ctx)
        steps, batch, hidden = c.shape
        grad_z = torch.zeros_like(c) if grad_z is None else grad_z
        i, f, g, o = act.chunk(4, -1)
        # ∂z/∂o and ∂z/∂c, and what ∂L/∂c is multiplied by to give ∂L/∂(i, f, g) before their σ
        to_o = _scaled(tanh_c * o * (1 - o), mult)
        to_c = _scaled(o * (1 - tanh_c * tanh_c), mult)
        to_ifg = torch.stack([g * i * (1 - i), _shifted(c0, c) * f * (1 - f), i * (1 - g * g)], 2)
        dz, dgates = torch.empty_like(c), torch.empty_like(act)
        dc = torch.zeros_like(c0)
        product = small_products(w_hh.t(), batch, steps)
        for t in range(steps - 1, -1, -1):
            if t == steps - 1:
                dz[t].copy_(grad_z[t])
            else:
                product(grad_z[t], dgates[t + 1], dz[t])
            dc = torch.addcmul(dc, dz[t], to_c[t])
            if grad_c is not None:
                dc += grad_c[t]
            per_gate = dgates[t].view(batch, 4, hidden)
            torch.mul(to_ifg[t], dc.unsqueeze(1), out=per_gate[:, :3])
            torch.mul(dz[t], to_o[t], out=per_gate[:, 3])
            dc *= f[t]
        return (
            None,
            dgates,
            dgates[0] @ w_hh if ctx.needs_input_grad[2] else None,
            dc,
            outer(dgates.flatten(0, 1), _shifted(z0, z).flatten(0, 1)),
            None,
            dz * (o * tanh_c) if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(
        cell: Cell,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        w_hh: Tensor,
        b_hh: Tensor | None,
        mult: Tensor | None,
        add: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, batch, width = gates.shape
        hidden = width // 3
        act = _workspace(gates, width, keep)  # σ(r), σ(u), tanh(n)
        n_z, h = (_workspace(gates, hidden, keep) for _ in range(2))
        z = gates.new_empty(steps, batch, hidden)
        p = gates.new_empty(batch, width)
        z_prev = z0
        bias = gates.new_zeros(()) if b_hh is None else b_hh
        product = small_products(w_hh, batch, steps)
        for t, gate in enumerate(gates.unbind(0)):
            product(bias, z_prev, p)
            ru = torch.add(gate[:, : 2 * hidden], p[:, : 2 * hidden], out=act[t, :, : 2 * hidden])
            r, u = ru.sigmoid_().chunk(2, 1)
            n_z[t] = p[:, 2 * hidden :]
            n = torch.addcmul(gate[:, 2 * hidden :], r, n_z[t], out=act[t, :, 2 * hidden :]).tanh_()
            torch.lerp(n, z_prev, u, out=h[t])  # (1 − u) n + u z
            z_prev = _noisy(h[t], t, mult, add, z[t])
        return z, act, n_z, h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, act, n_z, h = output
        _save(ctx, inputs, (z,), (act, n_z, h))

    @staticmethod
    @_twice_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (_, z0, _, w_hh, b_hh, mult, _), (z, act, n_z, h) = _saved(ctx)
        grad = torch.zeros_like(h) if grad is None else grad
        steps, batch, hidden = h.shape
        r, u, n = act.chunk(3, -1)
        before = _shifted(z0, z)
        # what ∂L/∂z is multiplied by to give ∂L/∂(r, u, n) before their nonlinearities
        to_n = _scaled((1 - u) * (1 - n * n), mult)
        to_u = _scaled((before - n) * u * (1 - u), mult)
        to_r = to_n * n_z * r * (1 - r)
        carry = u if mult is None else u * mult
        dz = torch.empty_like(h)
        # (r, u, n·r) is the gradient of the recurrent product, (r, u, n) that of the input's
        factors = torch.stack([to_r, to_u, to_n * r], 2)
        drec = torch.empty_like(act)
        product = small_products(w_hh.t(), batch, steps)
        for t in range(steps - 1, -1, -1):
            if t == steps - 1:
                dz[t].copy_(grad[t])
            else:
                product(grad[t], drec[t + 1], dz[t])
                dz[t].addcmul_(dz[t + 1], carry[t + 1])
            torch.mul(factors[t], dz[t].unsqueeze(1), out=drec[t].view(batch, 3, hidden))
        dgates = torch.cat([drec[..., : 2 * hidden], dz * to_n], -1)
        return (
            None,
            dgates,
            torch.addcmul(drec[0] @ w_hh, dz[0], carry[0]) if ctx.needs_input_grad[2] else None,
            None,
            outer(drec.flatten(0, 1), before.flatten(0, 1)),
            None if b_hh is None else drec.sum((0, 1)),
            dz * h if ctx.needs_input_grad[6] else None,
            dz if ctx.needs_input_grad[7] else None,
            None,
        )
