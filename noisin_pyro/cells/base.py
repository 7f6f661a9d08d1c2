"""Transitions h_t = f(x_t, z_{t-1}; W): what a cell tells the engine, and its readable step."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from noisin_pyro.kernels.fused import fused
from noisin_pyro.kernels.onednn import linear
from noisin_pyro.noise.base import Range

__all__ = ["Cell", "State", "TorchCell", "Weights", "loop_clean"]

State = tuple[Tensor, ...]
"""(z, \\*clean): the state that a layer hands to the next step.

z is the noisy state. The clean parts, which get no noise, are what a cell carries beside it: an
LSTM's c, and nothing in most cells.
"""

W = TypeVar("W")


class Weights(NamedTuple):
    """One layer's weights, named and shaped as in ``torch.nn.RNNBase``; G gates of H units."""

    w_ih: Tensor  # (G·H, I)
    w_hh: Tensor  # (G·H, H)
    b_ih: Tensor | None  # (G·H,)
    b_hh: Tensor | None  # (G·H,)


class Cell(Generic[W]):
    """One transition. A new cell is a file with a subclass: its :meth:`step`, and what it can do.

    A cell holds no weights: it is given those of a layer, in whatever form W it reads them.

    Attributes:
        name: as the errors call it.
        range: the interval of h, given that of z.
        keeps_range: whether h lies in ``range`` whatever z was.
        kernel: torch's fused kernel for the deterministic layer, if there is one.
        folds: whether recurrent noise enters linearly before anything nonlinear, so that
            additive noise is an extra input (see :mod:`noisin_pyro.layers.folding`).
        recurrent_weights: whether the cell has recurrent weights, and :meth:`step_reading` can give
            them something else to read than the state.
        weights_alone: whether z enters a step through the recurrent weights alone. In a GRU it does
            not: the update gate carries it on as well.
    """

    name: str
    range: Range
    keeps_range = True
    kernel: str | None = None
    folds = False
    recurrent_weights = False
    weights_alone = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def state_sizes(self, hidden: int) -> tuple[int, ...]:
        """The widths of the state's parts: H, and that of each clean part."""
        return (hidden,)

    def project(self, x: Tensor, weights: W) -> Tensor:
        """The input's part of the gates, for a whole sequence: (\\*, I) -> (\\*, G·H)."""
        raise NotImplementedError

    def step(self, gates: Tensor, state: State, weights: W) -> State:
        """One step, in plain torch, as a textbook writes it.

        Args:
            gates: :meth:`project` of the input, with shape (\\*, G·H).
            state: that of the step before, with the noisy z, each part with shape (\\*, H).
            weights: the layer's weights.

        Returns:
            The new state, with the clean h, each part with shape (\\*, H).
        """
        raise NotImplementedError

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: W) -> State:
        """:meth:`step` with recurrent weights that read ``read`` in the place of the state's h.

        Asked of cells with :attr:`recurrent_weights`.
        """
        raise NotImplementedError

    def scan(
        self,
        gates: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        """Runs a layer with affine noise over a sequence, one :meth:`step` after the other.

        Cells with a backward pass written by hand do the same faster (:mod:`.scan`).

        Args:
            gates: the input's part of the gates, with shape (T, B, G·H).
            state: the carried state, each part with shape (B, H).
            weights: the layer's weights.
            mult: m, with shape (T, B, H), or None for 1.
            add: a, with shape (T, B, H), or None for 0.

        Returns:
            The states of all steps, with z = h · m + a, each part with shape (T, B, H).
        """
        states: list[State] = []
        for t, gate in enumerate(gates.unbind(0)):
            h, *clean = self.step(gate, state, weights)
            z = h if mult is None else h * mult[t]
            z = z if add is None else z + add[t]
            state = (z, *clean)
            states.append(state)
        return tuple(torch.stack(parts) for parts in zip(*states))

    def run(
        self,
        x: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        """Projects the input, with shape (T, B, I), and scans; the rest is as in :meth:`scan`."""
        return self.scan(self.project(x, weights), state, weights, mult, add)

    def scan_clean(
        self,
        gates: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """As :meth:`scan`, for a layer that hands up h though its next step reads z.

        The scan gives the states, and one :meth:`step` for all of them h.

        Returns:
            h with shape (T, B, H), and the states of all steps.
        """
        states = self.scan(gates, state, weights, mult, add)
        before = tuple(
            torch.cat([first.to(part.dtype).unsqueeze(0), part[:-1]])
            for first, part in zip(state, states)
        )
        return self.step(gates, before, weights)[0], states

    def scan_reading(
        self,
        gates: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        """Runs a layer in which the recurrent weights alone read noise: m_t h_{t-1} + a_t.

        The arguments are those of :meth:`scan`. The states are clean, and so is the carried one.
        """
        states: list[State] = []
        for t, gate in enumerate(gates.unbind(0)):
            read = state[0] if mult is None else state[0] * mult[t]
            read = read if add is None else read + add[t]
            state = self.step_reading(gate, read, state, weights)
            states.append(state)
        return tuple(torch.stack(parts) for parts in zip(*states))

    def deterministic(
        self,
        x: Tensor,
        state: State,
        layers: list[W],
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
        raise NotImplementedError

    def folded(
        self, x: Tensor, state: State, weights: W, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """One deterministic layer by a fused kernel; asked of cells that :attr:`folds`.

        Args:
            x: the input, with shape (T, B, I).
            state: the start, each part with shape (1, B, H).
            weights: the layer's weights.
            lengths: each sequence's number of steps, with shape (B,), or None for T.

        Returns:
            h with shape (T, B, H) and the final state, each part with shape (1, B, H).
        """
        return self.deterministic(x, state, [weights], lengths)

    def folding_pays(self, rows: int, hidden: int) -> bool:
        """Whether, on a CPU, folding costs less than the scan.

        Folding adds a product as large as all the recurrence's. Only asked of cells that fold.

        Args:
            rows: B.
            hidden: H.
        """
        return True


def loop_clean(
    cell: Cell[W],
    gates: Tensor,
    state: State,
    weights: W,
    mult: Tensor | None = None,
    add: Tensor | None = None,
) -> tuple[Tensor, State]:
    """:meth:`Cell.scan_clean` in one loop, for a cell whose step may draw something."""
    hs: list[Tensor] = []
    states: list[State] = []
    for t, gate in enumerate(gates.unbind(0)):
        h, *clean = cell.step(gate, state, weights)
        z = h if mult is None else h * mult[t]
        state = (z if add is None else z + add[t], *clean)
        hs.append(h)
        states.append(state)
    return torch.stack(hs), tuple(torch.stack(parts) for parts in zip(*states))


class TorchCell(Cell[Weights]):
    """What torch's own cells share: the form of their weights, and a fused kernel."""

    recurrent_weights = True
    weights_alone = True

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: Weights) -> State:
        return self.step(gates, (read, *state[1:]), weights)

    def project(self, x: Tensor, weights: Weights) -> Tensor:
        """The input's part of the gates, for a whole sequence: (\\*, I) -> (\\*, G·H).

        It has the dtype of the weights, under autocast too, and so has the recurrence.
        """
        bias = weights.b_ih
        if bias is not None and weights.b_hh is not None:
            bias = bias + weights.b_hh
        return linear(x, weights.w_ih, bias).to(weights.w_hh.dtype)

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
        assert self.kernel is not None
        weights = [weight for layer in layers for weight in layer if weight is not None]
        biased = layers[0].b_ih is not None
        depth = len(layers) // (1 + bidirectional)
        options = (biased, depth, dropout, training, bidirectional)
        return fused(self.kernel, x, state, weights, options, lengths)
