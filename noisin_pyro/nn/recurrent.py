"""NoisyRecurrent: the noise of this library on the hidden state of any recurrent cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from noisin_pyro.cells.module import Form, ModuleCell, form_of
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.naming import claim_name
from noisin_pyro.nn import arguments
from noisin_pyro.nn.noisy_module import Sites
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.spread import SpreadLike
from noisin_pyro.sites import apart, own_store, priors_of

__all__ = ["NoisyRecurrent"]

Cells = nn.Module | Sequence[nn.Module] | Sequence[Sequence[nn.Module]]


class NoisyRecurrent(NoisyRecurrence, PyroModule):
    """Any recurrent network with a noisy hidden state: one cell, or a list of them as layers.

    A cell is any ``nn.Module`` that is called as ``torch.nn.RNNCell``, ``LSTMCell`` or ``GRUCell``:
    ``cell(x, state)`` returns the new state, a tensor h with shape (N, H) or a tuple whose first
    part is h and whose other parts, each with shape (N, F), stay clean. All parts have the dtype of
    the input. It is called once per step, with the padding of shorter sequences among its rows,
    which a batch norm inside it counts.
    Everything else is as in :class:`NoisyLSTM`: the call, lengths, packed and unbatched input, the
    carried state, the noises, and the sites and their names. Its own weights are parameters in
    Pyro too (``<name>.cell_l0$$$weight_hh``), and random if the cell is a ``PyroModule`` with
    priors. A :class:`PriorGuide` with a site per timestep runs the cell anew, so a cell that draws
    at random by itself wants ``sites="sequence"``; only torch's dropout modules are noticed.

    With torch's own cells it is :class:`NoisyLSTM` and its siblings, number by number, and slower:
    these know which products of a step can be done for all steps at once, which cannot be told of
    a cell that is called. A cell under ``torch.compile`` is run compiled.

    Args:
        cells: a cell, a list of cells (layer 0, which reads the input, first), or for a
            bidirectional RNN a list of pairs (forward, backward). All have the same state sizes.
        input_size: I, if the first cell has no attribute ``input_size``.
        state_sizes: the widths of the state's parts, if the cell can be called neither as
            ``cell(x)`` nor with a state of its ``hidden_size``; the first is H.
        range: the interval (low, high) that h lies in whatever the state before, such as (−1, 1).
            Only a :class:`MeanParameterized` noise asks for it, which must be defined on all of it;
            by default it is the whole real line.
        batch_first: as in ``torch.nn.LSTM``.
        dropout: probability of zeroing between the layers, while training.
        noise, spread, sites, tied, noise_to, zoneout, name: as in :class:`NoisyLSTM`.

    Raises:
        TypeError: if a cell is no module, or ``noise`` or ``spread`` is of another kind.
        ValueError: if a cell cannot be called so, if cells differ in the sizes of their state, or
            as :class:`NoisyLSTM` does.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative
        >>> class Leaky(torch.nn.Module):
        ...     def __init__(self, inputs, hidden):
        ...         super().__init__()
        ...         self.input_size, self.hidden_size = inputs, hidden
        ...         self.new = torch.nn.Linear(inputs + hidden, hidden)
        ...
        ...     def forward(self, x, h):
        ...         return 0.9 * h + 0.1 * self.new(torch.cat([x, h], -1)).tanh()
        >>> noise = Multiplicative(dist.Normal(0.0, 1.0))
        >>> rnn = NoisyRecurrent([Leaky(3, 5), Leaky(5, 5)], noise=noise, spread=0.5)
        >>> output, h = rnn(torch.randn(7, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([2, 2, 5]))
    """

    proj_size = 0
    _without: Tensor

    def __init__(
        self,
        cells: Cells,
        *,
        input_size: int | None = None,
        state_sizes: Sequence[int] | None = None,
        range: tuple[float, float] | None = None,
        batch_first: bool = False,
        dropout: float = 0.0,
        noise: Noise | Sequence[Noise | None] | None = None,
        spread: SpreadLike | Sequence[SpreadLike] = 0.5,
        sites: Sites = "sequence",
        tied: bool = False,
        noise_to: NoiseTo = "both",
        zoneout: float | Sequence[float] = 0.0,
        name: str = "",
    ) -> None:
        PyroModule.__init__(self, name)
        layers = _layers(cells)
        self.num_layers, self.bidirectional = len(layers), len(layers[0]) == 2
        self.batch_first, self.dropout = batch_first, float(dropout)
        self.input_size = _input_size(layers[0][0]) if input_size is None else input_size
        tracks = [cell for layer in layers for cell in layer]
        like = _like(tracks[0])
        if like is None:  # what .to() moves, of cells that hold no tensor
            self.register_buffer("_without", torch.empty(()), persistent=False)
            like = self._without
        forms: list[Form] = []
        for index, cell in enumerate(tracks):
            first = index < len(layers[0])
            width = self.input_size if first else len(layers[0]) * forms[0].sizes[0]
            if state_sizes is None:
                with own_store(), poutine.block():  # a PyroModule speaks to Pyro when called
                    forms.append(form_of(cell, width, like))
            else:
                sizes = arguments.state_sizes(state_sizes)
                forms.append(Form(sizes, tuple if len(sizes) > 1 else None))
        if any(form != forms[0] for form in forms):
            each = [form.sizes for form in forms]
            raise ValueError(
                f"all cells of a NoisyRecurrent must have the same state, got the sizes {each}; "
                "put several RNNs in turn for layers of different width"
            )
        self.hidden_size = forms[0].sizes[0]
        arguments.check_sizes(self.input_size, self.hidden_size, self.num_layers, dropout)
        for (layer, way), cell in zip(self._tracks, tracks):
            setattr(self, f"cell_l{layer}{way}", cell)
        kind = type(tracks[0]).__name__
        adapter = ModuleCell(
            kind if range is not None else f"{kind} (whose range= was not given)",
            forms[0],
            None if range is None else arguments.state_range(range),
        )
        self._add_noise(adapter, noise, spread, sites, tied, noise_to, zoneout, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if am_i_wrapped():
            return super().__call__(*args, **kwargs)
        with apart(self):  # a cell that is a PyroModule registers its parameters when it is called
            return super().__call__(*args, **kwargs)

    @property
    def like(self) -> Tensor:
        like = _like(self._modules["cell_l0"])
        return self._without if like is None else like

    def reset_parameters(self) -> None:
        """Calls ``reset_parameters`` of every cell that has it, and resets a learned γ."""
        for layer, way in self._tracks:
            reset = getattr(self._modules[f"cell_l{layer}{way}"], "reset_parameters", None)
            if reset is not None:
                reset()
        self._reset_spreads()

    def _claim_name(self) -> None:
        cell: Any = self._modules["cell_l0"]
        name, tensor = next(iter(cell.named_parameters()), ("", None))
        joint = "." if isinstance(cell, PyroModule) else "$$$"  # as Pyro names its parameters
        claim_name(self, f"cell_l0{joint}{name}", tensor)

    def _weights(self) -> list[Any]:
        cells = [getattr(self, f"cell_l{layer}{way}") for layer, way in self._tracks]
        for part, name in priors_of(nn.ModuleList(cells)):
            getattr(part, name)  # drawn here, once for all steps
        return cells

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        text += f", batch_first={self.batch_first}" if self.batch_first else ""
        text += f", dropout={self.dropout}" if self.dropout else ""
        return text + self._noise_repr()


def _layers(cells: Any) -> list[tuple[nn.Module, ...]]:
    """For each layer its cell, or its pair of cells."""

    def listed(given: Any) -> tuple[Any, ...]:
        several = isinstance(given, (nn.ModuleList, list, tuple))
        return tuple(given) if several else (given,)

    layers = [listed(layer) for layer in listed(cells)]
    for cell in (cell for layer in layers for cell in layer):
        if not isinstance(cell, nn.Module):
            raise TypeError(
                "NoisyRecurrent takes a cell, a list of cells or a list of pairs of cells, each an "
                f"nn.Module such as torch.nn.LSTMCell, got {cell!r}"
            )
        if isinstance(cell, (nn.RNNBase, NoisyRecurrence)):
            raise TypeError(
                f"NoisyRecurrent takes cells, which do one step, got {type(cell).__name__}, which "
                "runs over a sequence; use from_torch for torch.nn.RNN, LSTM or GRU"
            )
    widths = {len(layer) for layer in layers}
    if widths not in ({1}, {2}):
        raise ValueError(
            "NoisyRecurrent needs at least one cell, and one for each layer or a pair (forward, "
            f"backward) for each layer, got {[len(layer) for layer in layers]}"
        )
    return layers


def _input_size(cell: nn.Module) -> int:
    size = getattr(cell, "input_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"{type(cell).__name__} has no attribute input_size; give input_size= to NoisyRecurrent"
        )
    return size


def _like(cell: Any) -> Tensor | None:
    """A floating-point tensor of a cell, None if it has none."""
    held = (part for parts in (cell.parameters(), cell.buffers()) for part in parts)
    ready = (part for part in held if not nn.parameter.is_lazy(part))
    return next((part for part in ready if part.is_floating_point()), None)
