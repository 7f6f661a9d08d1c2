"""The noises of a recurrent module, and its spreads γ as attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro.cells.base import Cell
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.nn import arguments
from noisin_pyro.nn.per_layer import per_layer
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.parameters import Freezable
from noisin_pyro.spread.base import FLOOR
from noisin_pyro.spread.conversion import SpreadLike, as_spread
from noisin_pyro.spread.saved import SavesSpreads

__all__ = ["NoisyModule", "Sites"]

Sites = Literal["sequence", "timestep"] | None
"""One sample site per layer, one per layer and timestep, or none."""

if TYPE_CHECKING:

    class _Base(SavesSpreads, Freezable, nn.RNNBase, PyroModule):
        pass
else:

    class _Base(SavesSpreads, Freezable):
        pass


class NoisyModule(_Base):
    """A recurrent module with a noise for each layer, and a γ for each layer and direction.

    The attribute ``noise`` has an entry for each layer, and ``zoneout`` one for each part of the
    state.
    """

    cell: Cell[Any]
    noise: tuple[Noise | None, ...]
    sites: Sites
    tied: bool
    noise_to: NoiseTo
    zoneout: tuple[float, ...]
    _spread_prefix = "spread_l"

    def _add_noise(
        self,
        cell: Cell[Any],
        noise: Noise | Sequence[Noise | None] | None,
        spread: SpreadLike | Sequence[SpreadLike],
        sites: Sites,
        tied: bool,
        noise_to: NoiseTo,
        zoneout: float | Sequence[float],
        name: str,
    ) -> None:
        self._pyro_name = name
        arguments.check_options(type(self).__name__, cell, self.proj_size, sites, noise_to)
        self.cell, self.sites, self.tied, self.noise_to = cell, sites, tied, noise_to
        self.zoneout = arguments.zoneout_rates(zoneout, len(cell.state_sizes(self.hidden_size)))
        self.noise = tuple(per_layer(noise, self.num_layers, "noise"))
        for one in filter(None, self.noise):
            arguments.check_noise(one)
            one.check_range(cell.range, cell.name)
            if tied and self._samples_steps(one):
                arguments.refuse_tied(one, sites)
        self._spreads = {}
        self._set_spread(spread)

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the weights, the input, the state and the noise."""
        return self._like("weight_hh_l0")

    def _like(self, weight: str) -> Tensor:
        """A weight; or a parameter or buffer of its dtype, if reading it would draw it."""
        if weight in self._pyro_samples:
            for name, tensor in (*self._parameters.items(), *self._buffers.items()):
                if tensor is not None and name.startswith(("weight", "bias")):
                    return tensor
        like: Tensor = getattr(self, weight)
        return like

    @property
    def spread(self) -> tuple[Tensor | None, ...]:
        """γ of each layer and direction, with shape () or (H,); None for a layer without noise.

        It can be set at any time, to any value of the argument ``spread``.
        """
        like = self.like
        return tuple(
            self._spreads[name].read(self, name, like) if name in self._spreads else None
            for name in self._spread_names
        )

    @spread.setter
    def spread(self, spread: SpreadLike | Sequence[SpreadLike]) -> None:
        if not any(self.noise):
            raise AttributeError(
                f"spread is the γ of noise, which this {type(self).__name__} lacks, got {spread}; "
                "build it with a noise"
            )
        self._set_spread(spread)

    def _set_spread(self, spread: SpreadLike | Sequence[SpreadLike]) -> None:
        spreads = per_layer(spread, self.num_layers, "spread")
        for (layer, _), name in zip(self._tracks, self._spread_names):
            if self.noise[layer] is not None:
                setattr(self, name, spreads[layer])

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "spread":
            object.__setattr__(self, name, value)  # the property; torch would register a parameter
        elif name == "noise" and "noise" in self.__dict__:
            raise AttributeError(
                f"the noise of a {type(self).__name__} cannot be changed, got {value!r}; build "
                "another with the same weights, as from_torch(to_torch(rnn), noise=...) does, or "
                "call it with sample=False to run it without noise"
            )
        elif name.removesuffix(FLOOR) in self.__dict__.get("_spreads", ()) and name.endswith(FLOOR):
            self._set_floor(name, value)
        elif name.startswith("spread_l") and not name.endswith("_unconstrained"):
            if name not in self._spread_names or not self._is_noisy(name):
                raise AttributeError(f"{type(self).__name__} has no noisy layer with a {name!r}")
            spread = as_spread(value)
            spread.attach(self, name, self.hidden_size, self.like)
            self._spreads[name] = spread
        else:
            super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draws the weights with torch's distribution, and resets a learned γ.

        Weights with a prior, and its learned scale, are left as they are.
        """
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0.0
        spreads = self.__dict__.get("_spreads", {})  # not yet there in torch's constructor
        for name, weight in self.named_parameters():
            if name not in spreads and not name.endswith("_unconstrained"):  # γ or a prior's scale
                nn.init.uniform_(weight, -bound, bound)
        self._reset_spreads()

    def _reset_spreads(self) -> None:
        for name, spread in self.__dict__.get("_spreads", {}).items():
            spread.reset(self, name)

    @property
    def samples_timesteps(self) -> bool:
        """Whether some layer has a sample site per timestep, so that a guide must run the RNN."""
        return any(self._samples_steps(noise) for noise in self.noise)

    def _samples_steps(self, noise: Noise | None) -> bool:
        return noise is not None and (
            self.sites == "timestep" or not isinstance(noise, AffineNoise)
        )

    @property
    def _tracks(self) -> list[tuple[int, str]]:
        """All (layer, suffix of the direction) in torch's order: (0, ""), (0, "_reverse"), ..."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [(layer, suffix) for layer in range(self.num_layers) for suffix in suffixes]

    def _is_noisy(self, spread_name: str) -> bool:
        """Whether the layer of the attribute ``spread_name`` has a noise."""
        layer, _ = self._tracks[self._spread_names.index(spread_name)]
        return self.noise[layer] is not None

    @property
    def _spread_names(self) -> list[str]:  # type: ignore[override]
        return [f"spread_l{layer}{suffix}" for layer, suffix in self._tracks]

    def extra_repr(self) -> str:
        return super().extra_repr() + self._noise_repr()

    def _noise_repr(self) -> str:
        zoneout = f", zoneout={self.zoneout}" if any(self.zoneout) else ""
        if not any(self.noise):
            return zoneout
        spreads = [
            self._spreads[name].describe(self, name) if name in self._spreads else "None"
            for name in self._spread_names
        ]
        return f", noise={_shared(self.noise)}, spread={_shared(spreads)}{zoneout}"


def _shared(values: Sequence[Any]) -> str:
    """The text of a list of values, or of one value if all are equal."""
    same = all(value == values[0] for value in values)
    return str(values[0]) if same else f"[{', '.join(map(str, values))}]"
