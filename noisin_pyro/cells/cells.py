"""Transitions h_t = f(x_{t-1}, z_{t-1}; W): one step of each cell, in plain torch.

A transition is written once, here, as it would be read in a textbook; :mod:`.scan` and
:mod:`.folding` are faster ways to run the same equations over a whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels.onednn import linear

__all__ = ["CELLS", "Cell", "Elman", "GRU", "LSTM", "State", "Weights"]

State = tuple[Tensor, Tensor | None]
"""(z, c): the state that a layer hands to the next step; c is None but for an LSTM."""


class Weights(NamedTuple):
    """One layer's weights, named and shaped as in ``torch.nn.RNNBase``; G gates of H units."""

    w_ih: Tensor  # (G·H, I)
    w_hh: Tensor  # (G·H, H)
    b_ih: Tensor | None  # (G·H,)
    b_hh: Tensor | None  # (G·H,)


@dataclass(frozen=True)
class Cell:
    """One transition.

    Attributes:
        name: as the command line and the errors call it.
        low, high, closed: the range of h, and whether it contains ``low``.
        kernel: torch's fused kernel for the deterministic layer, if there is one.
        folds: whether recurrent noise enters linearly before anything nonlinear, so that
            additive noise is an extra input (see :mod:`.folding`).
    """

    name: str
    low: float
    high: float
    closed: bool
    kernel: str | None
    folds: bool

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
        """One step.

        Args:
            gates: :meth:`project` of the input, with shape (\\*, G·H).
            z: the noisy state of the step before, with shape (\\*, H).
            c: the cell state of the step before, with shape (\\*, H), for an LSTM.
            weights: the layer's weights.

        Returns:
            h and the new cell state, each with shape (\\*, H).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Elman(Cell):
    """h_t = act(W_ih x_t + b_ih + W_hh z_{t-1} + b_hh)."""

    def step(
        self, gates: Tensor, z: Tensor, c: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        return ACTIVATIONS[self.name](gates + F.linear(z, weights.w_hh)), None


@dataclass(frozen=True)
class LSTM(Cell):
    """Hochreiter and Schmidhuber (1997), as ``torch.nn.LSTM``; the cell state c is clean."""

    def step(
        self, gates: Tensor, z: Tensor, c: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        assert c is not None
        i, f, g, o = (gates + F.linear(z, weights.w_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@dataclass(frozen=True)
class GRU(Cell):
    """Cho et al. (2014), as ``torch.nn.GRU``: the reset gate multiplies W_hn z_{t-1} + b_hn."""

    def project(self, x: Tensor, weights: Weights) -> Tensor:
        return linear(x, weights.w_ih, weights.b_ih).to(weights.w_hh.dtype)

    def step(
        self, gates: Tensor, z: Tensor, c: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        r_x, u_x, n_x = gates.chunk(3, -1)
        r_z, u_z, n_z = F.linear(z, weights.w_hh, weights.b_hh).chunk(3, -1)
        r, u = (r_x + r_z).sigmoid(), (u_x + u_z).sigmoid()
        n = (n_x + r * n_z).tanh()
        return n + u * (z - n), None


def _identity(a: Tensor) -> Tensor:
    return a


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": _identity}
)

_INF = float("inf")

#: Every transition by name.
CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        "tanh": Elman("tanh", -1.0, 1.0, False, "rnn_tanh", folds=True),
        "relu": Elman("relu", 0.0, _INF, True, "rnn_relu", folds=True),
        "sigmoid": Elman("sigmoid", 0.0, 1.0, False, None, folds=True),
        "identity": Elman("identity", -_INF, _INF, False, None, folds=False),
        "lstm": LSTM("lstm", -1.0, 1.0, False, "lstm", folds=True),
        "gru": GRU("gru", -1.0, 1.0, False, "gru", folds=False),
    }
)
