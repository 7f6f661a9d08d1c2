"""What the noisy RNNs share: their sample sites, and the walk through their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from noisin_pyro.cells.cells import GRU, Cell, State, Weights
from noisin_pyro.layers.layer import (
    NoiseTo,
    add_noise,
    check_lengths,
    clean_layers,
    dropout,
    last_step,
    noisy_layer,
)
from noisin_pyro.noise.noise import Additive, MeanParameterized, Multiplicative, Noise
from noisin_pyro.noise.spread import Spread, attribute, per_layer
from noisin_pyro.sites import Freezable, Plates, Sites, in_context

__all__ = ["NoisyRecurrence", "hold_spread", "read_spread"]


def hold_spread(module: PyroModule, name: str, spread: Spread, units: int, like: Tensor) -> None:
    """Makes γ an attribute of a module: a number, a constrained parameter or a random one.

    Raises:
        ValueError, TypeError: as :func:`~noisin_pyro.noise.spread.attribute` does.
    """
    device = torch.device("cpu") if like.is_meta else like.device
    held: Any = attribute(spread, units, like.dtype, device)
    if isinstance(held, Tensor):
        held = float(spread)  # type: ignore[arg-type]  # has no dtype that .double() would round
    setattr(module, name, held)


def read_spread(module: PyroModule, name: str, like: Tensor) -> Tensor:
    """γ by attribute, such that it broadcasts with (\\*S, T, B, units).

    A prior may have been drawn inside the plates of particles, with shape (\\*S, 1, 1), or
    (\\*S, 1, 1, units) if it is one over all units' γ.
    """
    spread = getattr(module, name)
    if not isinstance(spread, Tensor):
        return like.new_full((), spread)
    spread = spread.to(like.dtype)  # a prior's may be another
    return spread if spread.dim() == 0 or _per_unit(module, name) else spread.unsqueeze(-1)


def _per_unit(module: PyroModule, name: str) -> bool:
    """Whether γ's last dimension, if it has one, runs over units; a layer may have just one."""
    if name in module._pyro_params:
        return module._pyro_params[name][1] != 0
    return getattr(module._pyro_samples.get(name), "event_shape", None) != ()


if TYPE_CHECKING:

    class _Base(Freezable, nn.RNNBase, PyroModule):
        pass
else:
    _Base = Freezable


class NoisyRecurrence(_Base):
    """What the three noisy RNNs share; see :class:`NoisyLSTM` for the arguments."""

    cell: Cell
    noise: tuple[Noise | None, ...]
    sites: Literal["sequence", "timestep"]
    tied: bool
    noise_to: NoiseTo

    def _add_noise(
        self,
        cell: Cell,
        noise: Noise | Sequence[Noise | None] | None,
        spread: Spread | Sequence[Spread],
        sites: Literal["sequence", "timestep"],
        tied: bool,
        noise_to: NoiseTo,
    ) -> None:
        name = type(self).__name__
        if self.bidirectional:
            raise ValueError(
                f"bidirectional={self.bidirectional} is not supported by {name}, because a "
                "generative process runs forward in time; use two noisy RNNs, one on the "
                "reversed input"
            )
        if self.proj_size:
            raise ValueError(
                f"proj_size={self.proj_size} is not supported by {name}, because the noise "
                "belongs to the hidden state and a projected state is no cell's output; "
                "use proj_size=0 and a linear layer after the RNN"
            )
        if sites not in ("sequence", "timestep"):
            raise ValueError(f"sites must be 'sequence' or 'timestep', got {sites!r}")
        if noise_to not in get_args(NoiseTo):
            raise ValueError(f"noise_to must be 'both', 'output' or 'recurrence', got {noise_to!r}")
        self.cell, self.sites, self.tied, self.noise_to = cell, sites, tied, noise_to
        self.noise = tuple(per_layer(noise, self.num_layers, "noise"))
        spreads = per_layer(spread, self.num_layers, "spread")
        for layer, one in enumerate(self.noise):
            if one is None:
                continue
            if not isinstance(one, Noise):
                if isinstance(one, Distribution):
                    way = f"wrap a distribution as Additive({one!r})"
                elif isinstance(one, str):
                    way = f"take a family by its name as family({one!r}, 'additive')"
                else:
                    way = "give, say, Additive(dist.Normal(0.0, 1.0))"
                raise TypeError(
                    "noise must be Additive, Multiplicative, MeanParameterized or None, got "
                    f"{one!r}; {way}"
                )
            one.check_range(cell.low, cell.high, cell.closed, cell.name)
            if tied and self._per_timestep(one):
                raise ValueError(
                    "tied=True draws one ε for the whole sequence, so it needs "
                    "sites='sequence' and an Additive or Multiplicative noise, "
                    f"got sites={sites!r} and {one!r}"
                )
            hold_spread(
                self, f"spread_l{layer}", spreads[layer], self.hidden_size, self.weight_hh_l0
            )

    @property
    def spread(self) -> tuple[Tensor | None, ...]:
        """γ of each layer, with shape () or (H,); None where a layer has no noise."""
        return tuple(
            None if noise is None else read_spread(self, f"spread_l{layer}", self.weight_hh_l0)
            for layer, noise in enumerate(self.noise)
        )

    @property
    def samples_timesteps(self) -> bool:
        """Whether some layer has a sample site per timestep, which needs the RNN to run."""
        return any(self._per_timestep(noise) for noise in self.noise)

    def _per_timestep(self, noise: Noise | None) -> bool:
        return noise is not None and (
            self.sites == "timestep" or isinstance(noise, MeanParameterized)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Outside Pyro this is a plain nn.Module: nothing of it enters the param store.
        if not am_i_wrapped():
            return nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        sample: bool | None = None,
        lengths: Tensor | None = None,
        plates: Plates | None = None,
        epsilon: Sequence[Tensor | None] | None = None,
    ) -> Any:
        """Runs the RNN.

        Args:
            input: with shape (T, B, I), (B, T, I) if ``batch_first``, (T, I) unbatched, or a
                ``PackedSequence``.
            hx: the carried state as torch has it, each part with shape (L, B, H); zeros if
                omitted. It is the noisy state z, and h with ``noise_to="output"``.
            sample: True draws noise, False runs the mean path z = h; by default noise is
                drawn while ``training``.
            lengths: each sequence's number of steps, with shape (B,); output past a
                sequence's end is zero and the final state is that of its last step.
            plates: the ``time`` (dim −2) and ``batch`` (dim −1) plates of a surrounding Pyro
                model, not yet entered; its own, named after the RNN, if omitted.
            epsilon: noise already drawn by :meth:`draw_noise`, for each layer what that returns
                or something of another batch or time dimension that broadcasts with it.

        Returns:
            The output z, shaped as torch has it, and the final state.

        Raises:
            ValueError: if a shape or a length does not fit, or if a plain backward pass would
                lose the gradient through a noise that has no pathwise one.
            TypeError: if the state is of another kind.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("a PackedSequence knows its lengths; leave out lengths=")
            x, lengths = pad_packed_sequence(input)
            z, state = self._time_major(x, hx, sample, lengths, plates, epsilon)
            if z.dim() > 3:
                raise ValueError(
                    "a PackedSequence has no room for the particles of a vectorised plate, got an "
                    f"output with shape {tuple(z.shape)}; pad the input and give lengths="
                )
            order = input.sorted_indices
            if order is not None:
                z, lengths = z[..., order, :], lengths[order.cpu()]
            return input._replace(data=pack_padded_sequence(z, lengths).data), state
        if not isinstance(input, Tensor) or not 2 <= input.dim() <= (4 if am_i_wrapped() else 3):
            shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must have shape (T, B, I) or (T, I), got {shape}")
        if input.dim() == 2:
            if hx is not None:
                self._check_state(hx, (self.num_layers, self.hidden_size))
            hx = _map_state(hx, lambda part: part.unsqueeze(-2))
            z, state = self._time_major(input.unsqueeze(1), hx, sample, lengths, plates, epsilon)
            return z.squeeze(-2), _map_state(state, lambda part: part.squeeze(-2))
        x = input.transpose(-3, -2) if self.batch_first else input
        z, state = self._time_major(x, hx, sample, lengths, plates, epsilon)
        return (z.transpose(-3, -2) if self.batch_first else z), state

    @in_context
    def draw_noise(
        self,
        steps: int,
        batch: int,
        lengths: Tensor | None = None,
        plates: Plates | None = None,
    ) -> list[Tensor | None]:
        """Issues the sites ``noise_{layer}`` of a sequence, without running the RNN.

        Args:
            steps: T.
            batch: B.
            lengths: each sequence's number of steps, with shape (B,).
            plates: see :meth:`forward`.

        Returns:
            One ε per layer with shape (T, B, H), (1, B, H) if ``tied``; None for a layer
            without noise or whose sites are per timestep.
        """
        if lengths is not None:
            check_lengths(lengths, steps, batch)
            lengths = lengths.to(self.weight_hh_l0.device)
        return self._draw(steps, batch, Sites(self, steps, batch, lengths, plates))

    def _draw(self, steps: int, batch: int, sites: Sites) -> list[Tensor | None]:
        draws: list[Tensor | None] = []
        for layer, noise in enumerate(self.noise):
            if not isinstance(noise, (Additive, Multiplicative)) or self._per_timestep(noise):
                draws.append(None)
                continue
            shape = (1 if self.tied else steps, batch, self.hidden_size)
            law: Any = noise.epsilon(self.weight_hh_l0).expand(shape)
            draw = sites.sample_once if self.tied else sites.sample
            draws.append(draw(f"noise_{layer}", law.to_event(1)))
        return draws

    def _time_major(
        self,
        x: Tensor,
        hx: Any,
        sample: bool | None,
        lengths: Tensor | None,
        plates: Plates | None,
        epsilon: Sequence[Tensor | None] | None,
    ) -> tuple[Tensor, Any]:
        """The whole RNN on an input with shape (\\*S, T, B, I), S being particles."""
        steps, batch = x.shape[-3:-1]
        if lengths is not None:
            check_lengths(lengths, steps, batch)
            lengths = lengths.to(x.device)
        # Weights and spreads are read before any plate is entered: a prior on one of them
        # would otherwise be drawn once per step and sequence.
        weights = self._weights()
        self._check_input(x, weights[0].w_ih)
        state = self._start(hx, x, batch)
        drawing = self.training if sample is None else sample
        dropping = drawing if self.tied else self.training  # tied masks are part of the noise
        noisy = drawing and any(self.noise)
        spreads = self.spread if noisy else (None,) * self.num_layers
        sites = Sites(self, steps, batch, lengths, plates)
        rate = self.dropout if dropping else 0.0
        if not noisy and self.cell.kernel is not None and not (rate and self.tied):
            z, final = clean_layers(self.cell, x, state, weights, lengths, rate, self.training)
        else:
            if noisy and epsilon is None:
                epsilon = self._draw(steps, batch, sites)
            elif noisy:
                self._check_noise(epsilon, steps, batch)
            z, final = self._layers(x, state, weights, spreads, epsilon, sites, lengths, rate)
        if noisy or plates is not None:
            sites.record_state("state", final[0])
        return z, final[0] if final[1] is None else final

    def _layers(
        self,
        x: Tensor,
        state: State,
        weights: list[Weights],
        spreads: Sequence[Tensor | None],
        epsilon: Sequence[Tensor | None] | None,
        sites: Sites,
        lengths: Tensor | None,
        rate: float,
    ) -> tuple[Tensor, State]:
        """Layer after layer; one whose spread is None is deterministic."""
        if sites.mask is not None:  # whatever stands in the padding, be it NaN
            x = x.masked_fill(~sites.mask.unsqueeze(-1), 0)
        finals = []
        steps: Sequence[Tensor] = ()  # of a layer with a site for each; see _timesteps
        for layer, (spread, weight) in enumerate(zip(spreads, weights)):
            start: State = (
                state[0][..., layer : layer + 1, :, :],
                None if state[1] is None else state[1][..., layer : layer + 1, :, :],
            )
            noise = self.noise[layer]
            eps = None if epsilon is None else epsilon[layer]
            if spread is None:
                x, final = noisy_layer(self.cell, x, start, weight, lengths=lengths)
                steps = ()
            elif eps is None:
                steps, final = self._timesteps(
                    layer, steps or x.split(1, -3), start, weight, spread, sites, lengths
                )
                x = _cat(steps)
            else:
                assert isinstance(noise, (Additive, Multiplicative))
                mult, add = noise.affine(eps, spread)
                x, final = noisy_layer(
                    self.cell, x, start, weight, mult, add, lengths, noise_to=self.noise_to
                )
                if sites.active:
                    z = add_noise(x, mult, add) if self.noise_to == "recurrence" else x
                    sites.record(f"z_{layer}", z)
                steps = ()
            finals.append(final)
            if rate and layer < self.num_layers - 1:
                x, steps = dropout(x, rate, True, self.tied), ()
        cs = [c for _, c in finals if c is not None]
        return x, (_cat([h for h, _ in finals]), _cat(cs) if cs else None)

    def _timesteps(
        self,
        layer: int,
        steps: Sequence[Tensor],
        state: State,
        weights: Weights,
        spread: Tensor,
        sites: Sites,
        lengths: Tensor | None,
    ) -> tuple[list[Tensor], State]:
        """One layer as the paper writes it: a sample site for each step.

        Steps come and go one by one, with shape (\\*S, 1, B, H), so that a state is made from
        those before it alone: ``pyro.render_model`` draws an arrow from all that it can see.
        """
        noise = self.noise[layer]
        assert noise is not None
        z, c = state  # (*S, 1, B, H), the 1 standing for time
        zs, hs, cs = [], [], []
        for t, x in enumerate(steps):
            h, c = self.cell.step(self.cell.project(x, weights), z, c, weights)
            law = noise.distribution(self._mean(noise, h), spread).to_event(1)
            if not (sites.active or law.has_rsample) and torch.is_grad_enabled():
                raise ValueError(
                    f"{noise} has no pathwise gradient, so a plain backward pass would lose it: "
                    "train with NoisinELBO or SVI, or draw samples under torch.no_grad()"
                )
            drawn = sites.sample_step(f"z_{layer}_{t}", law, t)
            z = h if self.noise_to == "output" else drawn
            zs.append(drawn)
            hs.append(h)
            cs.append(c)
        carried = last_step(_cat(hs if self.noise_to == "output" else zs), lengths)
        outputs = hs if self.noise_to == "recurrence" else zs
        if sites.mask is not None:
            masks = sites.mask.split(1)
            outputs = [out.masked_fill(~m.unsqueeze(-1), 0) for out, m in zip(outputs, masks)]
        return outputs, (carried, None if c is None else last_step(_cat(cs), lengths))

    def _mean(self, noise: Noise, h: Tensor) -> Tensor:
        """h, moved off the open ends of its range, which rounding reaches."""
        if isinstance(self.cell, GRU):  # its h, between tanh and z, goes as far as the noise does
            return h
        return noise.inside(h, self.cell.low, self.cell.high, self.cell.closed)

    def _weights(self) -> list[Weights]:
        """The weights of each layer, read by attribute so that a prior on one takes effect."""
        layers = []
        for layer in range(self.num_layers):
            w_ih, w_hh = (getattr(self, f"weight_{part}_l{layer}") for part in ("ih", "hh"))
            b_ih, b_hh = (
                getattr(self, f"bias_{part}_l{layer}") if self.bias else None
                for part in ("ih", "hh")
            )
            for part, dims in ((w_ih, 2), (w_hh, 2), (b_ih, 1), (b_hh, 1)):
                if part is not None and part.dim() > dims:
                    raise ValueError(
                        "a prior on a weight or a bias cannot be drawn once per particle of a "
                        f"vectorised plate, got one with shape {tuple(part.shape)}; use "
                        "vectorize_particles=False"
                    )
            layers.append(Weights(w_ih, w_hh, b_ih, b_hh))
        return layers

    def _check_input(self, x: Tensor, weight: Tensor) -> None:
        if x.shape[-1] != self.input_size or not x.is_floating_point():
            raise ValueError(
                f"input must be floating-point with {self.input_size} features, "
                f"got {x.dtype} with shape {tuple(x.shape)}"
            )
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"input must have the dtype of the weights, {weight.dtype}, got {x.dtype}; "
                "convert one with .to()"
            )
        if x.shape[-3] == 0:
            raise ValueError("input must have at least one time step, got 0")

    def _check_noise(self, epsilon: Any, steps: int, batch: int) -> None:
        shape = (1 if self.tied else steps, batch, self.hidden_size)

        def fits(part: Any, noise: Noise | None) -> bool:
            if noise is None or self._per_timestep(noise):
                return part is None
            if not isinstance(part, Tensor) or part.shape[-1:] != shape[-1:] or part.dim() < 3:
                return False
            return all(size in (1, whole) for size, whole in zip(part.shape[-3:], shape))

        if len(epsilon) != self.num_layers or not all(map(fits, epsilon, self.noise)):
            got = [tuple(part.shape) if isinstance(part, Tensor) else part for part in epsilon]
            raise ValueError(
                f"epsilon must hold, for each of the {self.num_layers} layers, a tensor with shape "
                f"{shape}, or None where there is no noise or a site per timestep, got {got}; "
                "take it from draw_noise"
            )

    def _start(self, hx: Any, x: Tensor, batch: int) -> State:
        """The carried state (h, c) with shapes (\\*S, L, B, H), zeros if none was given."""
        shape = (self.num_layers, batch, self.hidden_size)
        has_cell = self.cell.name == "lstm"
        if hx is None:
            zeros = x.new_zeros(shape)
            return zeros, zeros if has_cell else None
        state = self._check_state(hx, shape)
        for part in state:
            if part is None or part.dtype == x.dtype:
                continue
            if not torch.is_autocast_enabled(x.device.type):
                raise ValueError(
                    f"the state must have the dtype of the input, {x.dtype}, got {part.dtype}; "
                    "convert one with .to()"
                )
        return state

    def _check_state(self, hx: Any, shape: tuple[int, ...]) -> State:
        """The state given by a user as (h, c)."""
        has_cell = self.cell.name == "lstm"
        several = isinstance(hx, (tuple, list))
        parts = tuple(hx) if several else (hx,)
        whole = several == has_cell and len(parts) == 1 + has_cell
        if not whole or not all(isinstance(part, Tensor) for part in parts):
            wanted = "a pair (h, c)" if has_cell else "one tensor h"
            got = type(hx).__name__
            got += f" of {', '.join(type(part).__name__ for part in parts)}" if several else ""
            raise TypeError(
                f"the state of {type(self).__name__} is {wanted}, got {got}; give None to start "
                "at zero"
            )
        dims = len(shape)
        for part in parts:
            if tuple(part.shape[-dims:]) != shape or (part.dim() > dims and not am_i_wrapped()):
                raise ValueError(
                    f"each part of the state must have shape {shape}, got {tuple(part.shape)}"
                )
        return parts[0], parts[1] if has_cell else None

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        """Loads a torch module's state_dict too: it knows no spread, which keeps its value."""
        absent: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, absent, *rest)
        missing.extend(key for key in absent if not key.startswith(f"{prefix}spread_l"))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if any(self.noise):
            text += f", noise={_shared(self.noise)}"
            text += f", spread={_shared([self._spread_text(i) for i in range(self.num_layers)])}"
        return text

    def _spread_text(self, layer: int) -> str:
        name = f"spread_l{layer}"
        if self.noise[layer] is None:
            return "None"
        if name in self._pyro_samples:
            return str(self._pyro_samples[name])
        value = getattr(self, name)
        return f"{value.mean():.4g} (learned)" if isinstance(value, Tensor) else f"{value:g}"


def _shared(values: Sequence[Any]) -> str:
    """One value if all are equal."""
    same = all(value == values[0] for value in values)
    return str(values[0]) if same else f"[{', '.join(map(str, values))}]"


def _cat(parts: Sequence[Any]) -> Tensor:
    """Along time or layers: parts with shape (\\*S or fewer, 1, B, H) -> (\\*S, N, B, H)."""
    return torch.cat(torch.broadcast_tensors(*parts), -3)


def _map_state(hx: Any, change: Any) -> Any:
    if hx is None:
        return None
    return tuple(change(part) for part in hx) if isinstance(hx, (tuple, list)) else change(hx)
