"""Transitions h_t = f(x_t, z_{t-1}; W): what a cell tells the engine, and its readable step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noisin_pyro.kernels.fused import fused
from noisin_pyro.kernels.onednn import linear
from noisin_pyro.noise.base import Range

__all__ = ["Cell", "State", "Weights"]

State = tuple[Tensor, Tensor | None]
"""(z, c): the state that a layer hands to the next step; c is None but for an LSTM."""


class Weights(NamedTuple):
    """One layer's weights, named and shaped as in ``torch.nn.RNNBase``; G gates of H units."""

    w_ih: Tensor  # (G·H, I)
    w_hh: Tensor  # (G·H, H)
    b_ih: Tensor | None  # (G·H,)
    b_hh: Tensor | None  # (G·H,)


class Cell:
    """One transition. A new cell is a file with a subclass: its :meth:`step`, and what it can do.

    Attributes:
        name: as the errors call it.
        range: the interval of h, given that of z.
        keeps_range: whether h lies in ``range`` whatever z was.
        has_cell_state: whether it carries a clean cell state c beside z.
        kernel: torch's fused kernel for the deterministic layer, if there is one.
        folds: whether recurrent noise enters linearly before anything nonlinear, so that
            additive noise is an extra input (see :mod:`noisin_pyro.layers.folding`).
    """

    name: str
    range: Range
    keeps_range = True
    has_cell_state = False
    kernel: str | None = None
    folds = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def project(self, x: Tensor, weights: Weights) -> Tensor:
        """The input's part of the gates, for a whole sequence: (\\*, I) -> (\\*, G·H).

        It has the dtype of the weights, under autocast too, and so has the recurrence.
        """
        bias = weights.b_ih
        if bias is not None and weights.b_hh is not None:
            bias = bias + weights.b_hh
        return linear(x, weights.w_ih, bias).to(weights.w_hh.dtype)

    def step(
        self, gates: Tensor, z: Tensor, c: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        """One step, in plain torch, as a textbook writes it.

        Args:
            gates: :meth:`project` of the input, with shape (\\*, G·H).
            z: the noisy state of the step before, with shape (\\*, H).
            c: the cell state of the step before, with shape (\\*, H), if there is one.
            weights: the layer's weights.

        Returns:
            h and the new cell state, each with shape (\\*, H).
        """
        raise NotImplementedError

    def scan(
        self,
        gates: Tensor,
        z0: Tensor,
        c0: Tensor | None,
        weights: Weights,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs a layer with affine noise over a sequence, one :meth:`step` after the other.

        Cells with a backward pass written by hand do the same faster (:mod:`.scan`).

        Args:
            gates: the input's part of the gates, with shape (T, B, G·H).
            z0: the carried noisy state, with shape (B, H).
            c0: the carried cell state, with shape (B, H), if there is one.
            weights: the layer's weights, of which the recurrent ones are read.
            mult: m, with shape (T, B, H), or None for 1.
            add: a, with shape (T, B, H), or None for 0.

        Returns:
            z = h · m + a with shape (T, B, H) and, if there is a cell state, c of that shape.
        """
        z, c = z0, c0
        zs: list[Tensor] = []
        cs: list[Tensor] = []
        for t, gate in enumerate(gates.unbind(0)):
            h, c = self.step(gate, z, c, weights)
            z = h if mult is None else h * mult[t]
            z = z if add is None else z + add[t]
            zs.append(z)
            cs += [] if c is None else [c]
        return torch.stack(zs), torch.stack(cs) if cs else None

    def deterministic(
        self,
        x: Tensor,
        state: State,
        layers: list[Weights],
        lengths: Tensor | None = None,
        dropout: float = 0.0,
        training: bool = False,
        bidirectional: bool = False,
    ) -> tuple[Tensor, State]:
        """Layers without noise, in one call of torch's fused :attr:`kernel`.

        Args:
            x: the input, with shape (T, B, I).
            state: the start, each part with shape (D·L, B, H), D being 2 if ``bidirectional``.
            layers: the weights of the L layers, of both directions in turn.
            lengths: each sequence's number of steps, with shape (B,), or None for T.
            dropout: probability of zeroing, between layers, while ``training``.
            training: whether dropout acts.
            bidirectional: whether every layer has a second direction.

        Returns:
            The top layer's h, with shape (T, B, D·H) and 0 past a sequence's end, and the final
            state.
        """
        assert self.kernel is not None
        weights = [weight for layer in layers for weight in layer if weight is not None]
        biased = layers[0].b_ih is not None
        depth = len(layers) // (1 + bidirectional)
        options = (biased, depth, dropout, training, bidirectional)
        h, h_n, c_n = fused(self.kernel, x, *state, weights, options, lengths)
        return h, (h_n, c_n)

    def folded(
        self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One deterministic layer by a fused kernel; asked of cells that :attr:`folds`.

        Args:
            x: the input, with shape (T, B, I).
            state: the start, each part with shape (1, B, H).
            weights: the layer's weights.
            lengths: each sequence's number of steps, with shape (B,), or None for T.

        Returns:
            h with shape (T, B, H) and the final c with shape (1, B, H).
        """
        h, (_, c) = self.deterministic(x, state, [weights], lengths)
        return h, c

    def folding_pays(self, rows: int, hidden: int) -> bool:
        """Whether, on a CPU, folding costs less than the scan.

        Folding adds a product as large as all the recurrence's. Only asked of cells that fold.

        Args:
            rows: B.
            hidden: H.
        """
        return True
