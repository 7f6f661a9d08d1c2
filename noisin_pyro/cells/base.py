"""The interface of a recurrent cell, the transition h_t = f(x_t, z_{t-1}; W) of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from noisin_pyro.kernels.fused import fused
from noisin_pyro.kernels.onednn import linear
from noisin_pyro.noise.base import Range

__all__ = ["Cell", "State", "TorchCell", "Weights", "loop_clean"]

State = tuple[Tensor, ...]
"""(z, \\*clean): the state of a layer after a step.

z is the noisy state. The clean parts get no noise: an LSTM has one, its cell state c, and most
cells have none.
"""

W = TypeVar("W")


class Weights(NamedTuple):
    """The weights of a layer with G gates of H units, named and shaped as in ``nn.RNNBase``."""

    w_ih: Tensor  # (G·H, I)
    w_hh: Tensor  # (G·H, H)
    b_ih: Tensor | None  # (G·H,)
    b_hh: Tensor | None  # (G·H,)


class Cell(Generic[W]):
    """The transition of a recurrent layer.

    A new cell is a subclass that implements :meth:`project` and :meth:`step`; the other methods run
    these over a sequence, and a subclass overrides them where it has a faster way. A cell holds no
    weights: each method takes a layer's weights, in a form W that the subclass chooses.

    Attributes:
        name: the cell's name in error messages.
        range: the interval that contains h if it contains z_{t-1}.
        kernel: the name of torch's fused kernel for the deterministic layer, None if torch has
            none.
        folds: whether additive noise can be an extra input of a fused kernel, because z_{t-1}
            enters the step linearly (see :mod:`noisin_pyro.layers.folding`).
        recurrent_weights: whether the cell has recurrent weights and implements
            :meth:`step_reading`.
        weights_alone: whether z_{t-1} enters the step through the recurrent weights alone. False
            for a GRU, whose update gate also carries z_{t-1} into h_t.
    """

    name: str
    range: Range
    kernel: str | None = None
    folds = False
    recurrent_weights = False
    weights_alone = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def state_sizes(self, hidden: int) -> tuple[int, ...]:
        """The widths of the state's parts: H, then the width of each clean part."""
        return (hidden,)

    def project(self, x: Tensor, weights: W) -> Tensor:
        """The gates' terms in the input, for all steps at once: (\\*, I) -> (\\*, G·H)."""
        raise NotImplementedError

    def step(self, gates: Tensor, state: State, weights: W) -> State:
        """One step in plain torch, written as in a textbook.

        Args:
            gates: :meth:`project` of the input, with shape (\\*, G·H).
            state: (z_{t-1}, \\*clean), each part with shape (\\*, H).
            weights: the layer's weights.

        Returns:
            (h_t, \\*clean), each part with shape (\\*, H). The caller adds the noise to h_t.
        """
        raise NotImplementedError

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: W) -> State:
        """:meth:`step` whose recurrent weights multiply ``read`` instead of the state's first part.

        Only called if :attr:`recurrent_weights` is True.

        Args:
            gates: as in :meth:`step`.
            read: the operand of the recurrent weights, with shape (\\*, H).
            state: (h_{t-1}, \\*clean), each part with shape (\\*, H).
            weights: the layer's weights.

        Returns:
            (h_t, \\*clean), each part with shape (\\*, H).
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
        """Runs a layer with noise z = h · m + a over a sequence, one :meth:`step` after the other.

        This is the readable form. Most cells override it with a faster one (:mod:`.scan`,
        :mod:`.linear`), and tests compare the two.

        Args:
            gates: :meth:`project` of the input, with shape (T, B, G·H).
            state: the carried state, each part with shape (B, H).
            weights: the layer's weights.
            mult: m, with shape (T, B, H), or None for 1.
            add: a, with shape (T, B, H), or None for 0.

        Returns:
            (z, \\*clean) of all steps, each part with shape (T, B, H).
        """
        steps = _steps(self, gates, state, weights, mult, add)
        return _stacked([state for _, state in steps])

    def run(
        self,
        x: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> State:
        """:meth:`scan` of an input with shape (T, B, I); the other arguments are the same."""
        return self.scan(self.project(x, weights), state, weights, mult, add)

    def scan_clean(
        self,
        gates: Tensor,
        state: State,
        weights: W,
        mult: Tensor | None = None,
        add: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """:meth:`scan` that also returns the clean h, the output with ``noise_to="recurrence"``.

        h is recomputed from the states, for all steps in one call of :meth:`step`.

        Returns:
            h with shape (T, B, H), and (z, \\*clean) of all steps.
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
        """Runs a layer whose recurrent weights multiply m_t h_{t-1} + a_t, with no other noise.

        The arguments are those of :meth:`scan`, but the carried state is clean.

        Returns:
            (h, \\*clean) of all steps, each part with shape (T, B, H).
        """
        states: list[State] = []
        for t, gate in enumerate(gates.unbind(0)):
            read = _noisy(state[0], mult, add, t)
            state = self.step_reading(gate, read, state, weights)
            states.append(state)
        return _stacked(states)

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
        """L layers without noise, in one call of torch's fused :attr:`kernel`.

        Only called if there is one.

        Args:
            x: the input, with shape (T, B, I).
            state: the initial state, each part with shape (D·L, B, H); D is 2 if
                ``bidirectional``, otherwise 1.
            layers: the weights of D·L layers, (layer 0 forward, layer 0 backward, layer 1, ...).
            lengths: each sequence's number of steps, with shape (B,), or None for T.
            dropout: the probability of zeroing a unit between layers, while ``training``.
            training: whether dropout acts.
            bidirectional: whether every layer also runs backwards in time.

        Returns:
            The top layer's h, with shape (T, B, D·H) and 0 past a sequence's end, and the final
            state.
        """
        raise NotImplementedError

    def folded(
        self, x: Tensor, state: State, weights: W, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """One layer without noise, by a fused kernel; only called if :attr:`folds` is True.

        Args:
            x: the input, with shape (T, B, I).
            state: the initial state, each part with shape (1, B, H).
            weights: the layer's weights.
            lengths: each sequence's number of steps, with shape (B,), or None for T.

        Returns:
            h with shape (T, B, H) and the final state, each part with shape (1, B, H).
        """
        return self.deterministic(x, state, [weights], lengths)

    def folding_pays(self, rows: int, hidden: int) -> bool:
        """Whether folding costs less than :meth:`scan` on a CPU; only called if they fold.

        Folding costs one more matrix product, as large as those of all recurrent steps together.

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
    """:meth:`Cell.scan_clean` in one loop, for a cell whose :meth:`~Cell.step` may be random.

    :meth:`Cell.scan_clean` would call such a step twice, with two different draws.
    """
    hs, states = zip(*_steps(cell, gates, state, weights, mult, add))
    return torch.stack(hs), _stacked(states)


def _steps(
    cell: Cell[W],
    gates: Tensor,
    state: State,
    weights: W,
    mult: Tensor | None,
    add: Tensor | None,
) -> Iterator[tuple[Tensor, State]]:
    """h_t and (z_t, \\*clean), step by step."""
    for t, gate in enumerate(gates.unbind(0)):
        h, *clean = cell.step(gate, state, weights)
        state = (_noisy(h, mult, add, t), *clean)
        yield h, state


def _noisy(h: Tensor, mult: Tensor | None, add: Tensor | None, t: int) -> Tensor:
    """h · m_t + a_t."""
    z = h if mult is None else h * mult[t]
    return z if add is None else z + add[t]


def _stacked(states: Sequence[State]) -> State:
    """The states of all steps, each part with shape (T, B, H)."""
    return tuple(torch.stack(parts) for parts in zip(*states))


class TorchCell(Cell[Weights]):
    """Base of the cells that torch has too: its layout of weights, and its fused kernels."""

    recurrent_weights = True
    weights_alone = True

    def step_reading(self, gates: Tensor, read: Tensor, state: State, weights: Weights) -> State:
        return self.step(gates, (read, *state[1:]), weights)

    def project(self, x: Tensor, weights: Weights) -> Tensor:
        """W_ih x + b_ih + b_hh for all steps at once: (\\*, I) -> (\\*, G·H).

        The result has the weights' dtype, also under autocast, because the recurrence runs in it.
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
