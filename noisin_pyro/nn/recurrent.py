"""NoisyRecurrent: any recurrent cell with noise on its hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro.cells.module import Form, ModuleCell, form_of
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.naming import claim_name
from noisin_pyro.nn import arguments
from noisin_pyro.nn.noisy_module import Sites
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.base import Noise
from noisin_pyro.parameters import apart, own_store, priors_of, read_priors
from noisin_pyro.spread.conversion import SpreadLike

__all__ = ["NoisyRecurrent"]

Cells = nn.Module | Sequence[nn.Module] | Sequence[Sequence[nn.Module]]


class NoisyRecurrent(NoisyRecurrence, PyroModule):
    """Any recurrent network with a noisy hidden state: one cell, or a list of them as layers.

    A cell is any ``nn.Module`` with the call of ``torch.nn.RNNCell``, ``LSTMCell`` or ``GRUCell``:
    ``cell(x, state)`` with x of shape (N, I) returns the new state. The state is a tensor h with
    shape (N, H), or a tuple whose first part is h; its other parts, each with shape (N, F), get no
    noise. All parts have the dtype of the input. The cell is called once per step. The padding of
    shorter sequences is among its rows, so a batch norm inside it includes padding in its
    statistics.

    The call, lengths, packed and unbatched input, the carried state, the noises, and the sample
    sites and their names are those of :class:`NoisyLSTM`. The cell's weights are parameters in Pyro
    (``<name>.cell_l0$$$weight_hh``), or random if the cell is a ``PyroModule`` with priors. With a
    site per timestep, a :class:`PriorGuide` runs the cell again. So a cell that draws random
    numbers needs ``sites="sequence"``; only torch's dropout modules are detected and refused.

    With one of torch's cells the results equal those of :class:`NoisyLSTM`, :class:`NoisyGRU` or
    :class:`NoisyRNN`, but training is slower, because no product can be computed for all steps at
    once. A cell under ``torch.compile`` runs compiled.

    Args:
        cells: a cell, a list of cells (layer 0, which reads the input, first), or for a
            bidirectional RNN a list of pairs (forward, backward). All have the same state sizes.
        input_size: I; needed if the first cell has no attribute ``input_size``.
        state_sizes: the widths of the state's parts, H first; needed if the cell can be called
            neither as ``cell(x)`` nor with zero states as wide as its ``hidden_size``.
        range: an interval (low, high) that contains h for every previous state, such as (−1, 1);
            by default the whole real line. Only :class:`MeanParameterized` uses it: its
            distribution must be defined for every mean in the interval.
        batch_first: as in ``torch.nn.LSTM``.
        dropout: the probability of zeroing a unit between layers, while training.
        noise, spread, sites, tied, noise_to, zoneout, name: as in :class:`NoisyLSTM`, but without
            ``noise_to="weights"``, since the recurrent weights of a cell are not known.

    Raises:
        TypeError: if a cell is no module or a whole RNN, or ``noise`` or ``spread`` has another
            type.
        ValueError: if a cell cannot be called as above, if cells differ in the sizes of their
            state, or as :class:`NoisyLSTM`.

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

    @arguments.spread_with_noise
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
        arguments.check_sizes(dropout, input_size=self.input_size)
        tracks = [cell for layer in layers for cell in layer]
        like = _like(tracks[0])
        if like is None:  # .to() moves this buffer where the cells have no tensor
            self.register_buffer("_without", torch.empty(()), persistent=False)
            like = self._without
        if state_sizes is None:
            form = _common_form(tracks, len(layers[0]), self.input_size, like)
        else:
            sizes = arguments.state_sizes(state_sizes)
            form = Form(sizes, tuple if len(sizes) > 1 else None)
        self.hidden_size = form.sizes[0]
        arguments.check_sizes(dropout, hidden_size=self.hidden_size)
        for (layer, suffix), cell in zip(self._tracks, tracks):
            setattr(self, f"cell_l{layer}{suffix}", cell)
        kind = type(tracks[0]).__name__
        adapter = ModuleCell(
            kind if range is not None else f"{kind} (whose range= was not given)",
            form,
            None if range is None else arguments.state_range(range),
        )
        self._add_noise(adapter, noise, spread, sites, tied, noise_to, zoneout, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with apart(self):  # calling a cell that is a PyroModule registers its parameters
            return super().__call__(*args, **kwargs)

    @property
    def like(self) -> Tensor:
        like = _like(self._modules["cell_l0"])
        if like is None:
            like = self._buffers.get("_without")
        return torch.empty(()) if like is None else like  # a quantised cell has no parameters

    def flatten_parameters(self) -> None:
        """Does nothing; programs for torch's RNNs call it, for cuDNN."""

    def reset_parameters(self) -> None:
        """Calls ``reset_parameters`` of every cell that has it, and resets a learned γ."""
        for layer, suffix in self._tracks:
            reset = getattr(self._modules[f"cell_l{layer}{suffix}"], "reset_parameters", None)
            if reset is not None:
                reset()
        self._reset_spreads()

    def _claim_name(self) -> None:
        cell: Any = self._modules["cell_l0"]
        name, tensor = next(iter(cell.named_parameters()), ("", None))
        joint = "." if isinstance(cell, PyroModule) else "$$$"  # Pyro's names of its parameters
        claim_name(self, f"cell_l0{joint}{name}", tensor)

    def _weights(self) -> list[Any]:
        cells = [getattr(self, f"cell_l{layer}{suffix}") for layer, suffix in self._tracks]
        read_priors(priors_of(nn.ModuleList(cells)))  # once for all steps
        return cells

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        text += f", batch_first={self.batch_first}" if self.batch_first else ""
        text += f", dropout={self.dropout}" if self.dropout else ""
        return text + self._noise_repr()


def _layers(cells: Any) -> list[tuple[nn.Module, ...]]:
    """The cell or the pair (forward, backward) of each layer.

    Raises:
        TypeError: if a cell is no module, or a whole RNN.
        ValueError: if there is none, or if layers have neither one cell each nor two each.
    """

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


def _common_form(
    tracks: Sequence[nn.Module], directions: int, input_size: int, like: Tensor
) -> Form:
    """The form of the state of all cells, by trial calls.

    Args:
        tracks: the cells of all layers and directions, in torch's order.
        directions: 1 or 2.
        input_size: I of the first layer.
        like: a tensor with the dtype and device of the input.

    Raises:
        ValueError: if a cell cannot be called, or if cells differ in their state.
    """
    forms: list[Form] = []
    for index, cell in enumerate(tracks):
        width = input_size if index < directions else directions * forms[0].sizes[0]
        with own_store(), poutine.block():  # a PyroModule registers parameters when it is called
            forms.append(form_of(cell, width, like))
    if any(form != forms[0] for form in forms):
        each = [form.sizes for form in forms]
        raise ValueError(
            f"all cells of a NoisyRecurrent must have the same state, got the sizes {each}; "
            "put several RNNs in turn for layers of different width"
        )
    return forms[0]


def _input_size(cell: nn.Module) -> int:
    size = getattr(cell, "input_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"{type(cell).__name__} has no attribute input_size; give input_size= to NoisyRecurrent"
        )
    return size


def _like(cell: Any) -> Tensor | None:
    """A floating-point parameter or buffer of a cell, None if it has none."""
    tensors = (part for parts in (cell.parameters(), cell.buffers()) for part in parts)
    ready = (part for part in tensors if not nn.parameter.is_lazy(part))
    return next((part for part in ready if part.is_floating_point()), None)
