"""NoisyRNN, NoisyLSTM and NoisyGRU: drop-ins for torch's, with a noise on the hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from noisin_pyro.cells import CELLS, Cell, Weights
from noisin_pyro.folding import State, fold, fused, one_layer
from noisin_pyro.noise import Additive, MeanParameterized, Multiplicative, Noise
from noisin_pyro.scan import scan
from noisin_pyro.spread import Learned, Spread, attribute, per_layer

__all__ = ["NoisyGRU", "NoisyLSTM", "NoisyRNN", "Plates", "from_torch", "length_mask"]

Plates = tuple[Any, Any]
"""The ``time`` (dim −2) and ``batch`` (dim −1) plates of a model."""


class Site(NamedTuple):
    """What every sample site of one call has in common."""

    time: Any  # plates, or None outside Pyro
    batch: Any
    mask: Tensor | None  # (T, B), True on the steps that exist


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """True where a step lies within its sequence: lengths (B,) -> (T, B)."""
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


def check_lengths(lengths: Tensor, steps: int, batch: int) -> None:
    """Raises ValueError unless ``lengths`` holds one number in 1..T for each sequence."""
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be integers with shape ({batch},), one for each sequence, "
            f"got {lengths.dtype} with shape {tuple(lengths.shape)}"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > steps:
        raise ValueError(
            f"lengths must lie between 1 and the input's {steps} steps, got "
            f"{lengths.tolist()}; drop empty sequences and pad the input"
        )


if TYPE_CHECKING:

    class _Base(nn.RNNBase, PyroModule):
        pass
else:
    _Base = object


class _Noisy(_Base):
    """What the three noisy RNNs share; see :class:`NoisyLSTM` for the arguments."""

    cell: Cell
    noise: tuple[Noise | None, ...]
    sites: Literal["sequence", "timestep"]
    tied: bool
    feedback: bool

    def _add_noise(
        self,
        cell: Cell,
        noise: Noise | Sequence[Noise | None] | None,
        spread: Spread | Sequence[Spread],
        sites: Literal["sequence", "timestep"],
        tied: bool,
        feedback: bool,
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
        self.cell, self.sites, self.tied, self.feedback = cell, sites, tied, feedback
        self.noise = tuple(per_layer(noise, self.num_layers, "noise"))
        for one in self.noise:
            if one is None:
                continue
            if not isinstance(one, Noise):
                raise TypeError(
                    f"noise must be Additive, Multiplicative, MeanParameterized or None, "
                    f"got {one!r}; wrap a distribution as Additive({one!r})"
                )
            one.check_range(cell.low, cell.high, cell.closed, cell.name)
            if tied and (sites == "timestep" or isinstance(one, MeanParameterized)):
                raise ValueError(
                    "tied=True draws one ε for the whole sequence, so it needs "
                    "sites='sequence' and an Additive or Multiplicative noise, "
                    f"got sites={sites!r} and {one!r}"
                )
        self._set_spreads(spread)

    def _set_spreads(self, spread: Spread | Sequence[Spread]) -> None:
        weight = self.weight_hh_l0
        device = torch.device("cpu") if weight.is_meta else weight.device
        for layer, one in enumerate(per_layer(spread, self.num_layers, "spread")):
            if self.noise[layer] is None:
                continue
            held = attribute(one, self.hidden_size, weight.dtype, device)
            if isinstance(held, Tensor):
                self.register_buffer(f"spread_l{layer}", held, persistent=False)
            else:
                setattr(self, f"spread_l{layer}", held)

    @property
    def spread(self) -> tuple[Tensor | None, ...]:
        """γ of each layer, with shape () or (H,); None where a layer has no noise."""
        return tuple(
            None if noise is None else getattr(self, f"spread_l{layer}")
            for layer, noise in enumerate(self.noise)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Outside Pyro this is a plain nn.Module: nothing of it enters the param store.
        if not am_i_wrapped() and not self._pyro_context.active:
            return nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def forward(  # type: ignore[override]
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
                omitted. With ``feedback`` it is the noisy state z.
            sample: True draws noise, False runs the mean path z = h; by default noise is
                drawn while ``training``.
            lengths: each sequence's number of steps, with shape (B,); output past a
                sequence's end is zero and the final state is that of its last step.
            plates: the ``time`` (dim −2) and ``batch`` (dim −1) plates of a surrounding Pyro
                model; its own, named after the RNN, if omitted.
            epsilon: noise already drawn by :meth:`draw_noise`.

        Returns:
            The output z, shaped as torch has it, and the final state.

        Raises:
            ValueError: if a shape or a length does not fit.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("a PackedSequence knows its lengths; leave out lengths=")
            x, lengths = pad_packed_sequence(input)
            packed_lengths = lengths
            z, state = self._time_major(x, hx, sample, lengths.to(x.device), plates, epsilon)
            packed = pack_padded_sequence(z, packed_lengths, enforce_sorted=False)
            return packed, self._torch_state(state)
        if not isinstance(input, Tensor) or input.dim() < 2 or (
            input.dim() > 3 and not am_i_wrapped()
        ):
            shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must have shape (T, B, I) or (T, I), got {shape}")
        if input.dim() == 2:
            hx = _map_state(hx, lambda part: part.unsqueeze(-2))
            z, state = self._time_major(
                input.unsqueeze(1), hx, sample, lengths, plates, epsilon
            )
            return z.squeeze(-2), self._torch_state(tuple(_squeezed(part) for part in state))
        x = input.transpose(-3, -2) if self.batch_first else input
        z, state = self._time_major(x, hx, sample, lengths, plates, epsilon)
        return (z.transpose(-3, -2) if self.batch_first else z), self._torch_state(state)

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
        return self._draw(steps, batch, self._site(steps, batch, lengths, plates))

    @property
    def samples_timesteps(self) -> bool:
        """Whether some layer has a sample site per timestep, which needs the RNN to run."""
        return any(self._per_timestep(noise) for noise in self.noise)

    def _per_timestep(self, noise: Noise | None) -> bool:
        return noise is not None and (
            self.sites == "timestep" or isinstance(noise, MeanParameterized)
        )

    def _site(
        self, steps: int, batch: int, lengths: Tensor | None, plates: Plates | None
    ) -> Site:
        mask = None if lengths is None else length_mask(lengths, steps)
        if not am_i_wrapped():
            return Site(None, None, mask)
        if plates is None:
            name = self._pyro_get_fullname
            plates = (
                pyro.plate(name("time"), steps, dim=-2),
                pyro.plate(name("batch"), batch, dim=-1),
            )
        return Site(*plates, mask)

    def _sample(self, name: str, law: Any, plates: Sequence[Any], mask: Tensor | None) -> Tensor:
        if not am_i_wrapped():
            return law()  # type: ignore[no-any-return]
        with ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            if mask is not None:
                stack.enter_context(pyro.poutine.mask(mask=mask))
            return pyro.sample(self._pyro_get_fullname(name), law)  # type: ignore[no-any-return]

    def _draw(self, steps: int, batch: int, site: Site) -> list[Tensor | None]:
        draws: list[Tensor | None] = []
        like = next(self.parameters(), torch.empty(()))
        for layer, noise in enumerate(self.noise):
            if not isinstance(noise, (Additive, Multiplicative)) or self._per_timestep(noise):
                draws.append(None)
                continue
            shape = (1 if self.tied else steps, batch, self.hidden_size)
            law = noise.epsilon(like).expand(shape).to_event(1)
            plates = (site.batch,) if self.tied else (site.time, site.batch)
            mask = None if self.tied else site.mask
            draws.append(self._sample(f"noise_{layer}", law, plates, mask))
        return draws

    def _time_major(
        self,
        x: Tensor,
        hx: Any,
        sample: bool | None,
        lengths: Tensor | None,
        plates: Plates | None,
        epsilon: Sequence[Tensor | None] | None,
    ) -> tuple[Tensor, State]:
        """The whole RNN on an input with shape (\\*S, T, B, I), S being particles."""
        steps, batch = x.shape[-3:-1]
        if x.shape[-1] != self.input_size or not x.is_floating_point():
            raise ValueError(
                f"input must be floating-point with {self.input_size} features, "
                f"got {x.dtype} with shape {tuple(x.shape)}"
            )
        if steps == 0:
            raise ValueError("input must have at least one time step, got 0")
        if lengths is not None:
            check_lengths(lengths, steps, batch)
        state = self._start(hx, x, batch)
        # Weights and spreads are read before any plate is entered: a prior on one of them
        # would otherwise be drawn once per step and sequence.
        weights = self._weights()
        noisy = self.training if sample is None else sample
        if not noisy or not any(self.noise):
            return self._clean(x, state, weights, lengths)
        spreads = self.spread
        site = self._site(steps, batch, lengths, plates)
        draws = self._draw(steps, batch, site) if epsilon is None else epsilon
        finals = []
        for layer, (noise, spread, eps) in enumerate(zip(self.noise, spreads, draws)):
            h0 = state[0][..., layer, :, :]
            c0 = None if state[1] is None else state[1][..., layer, :, :]
            if noise is None or eps is not None:
                x, final = self._sequence(x, (h0, c0), weights[layer], noise, spread, eps, lengths)
                if noise is not None and am_i_wrapped():
                    with site.time, site.batch:
                        pyro.deterministic(
                            self._pyro_get_fullname(f"z_{layer}"), x, event_dim=1
                        )
            else:
                x, final = self._timesteps(
                    layer, x, (h0, c0), weights[layer], noise, spread, site, lengths
                )
            finals.append(final)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        h = torch.stack(torch.broadcast_tensors(*(h for h, _ in finals)), -3)
        cs = [c for _, c in finals if c is not None]
        return x, (h, torch.stack(torch.broadcast_tensors(*cs), -3) if cs else None)

    def _sequence(
        self,
        x: Tensor,
        state: State,
        weights: Weights,
        noise: Noise | None,
        spread: Tensor | None,
        epsilon: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """One layer whose noise, if any, is known for all steps."""
        mult = add = None
        if isinstance(noise, (Additive, Multiplicative)):
            assert spread is not None and epsilon is not None
            mult, add = noise.affine(epsilon, self._broadcastable(spread))
        steps, batch = x.shape[-3:-1]
        inputs = (x, mult, add)
        lead = torch.broadcast_shapes(
            *(part.shape[:-3] for part in inputs if part is not None), state[0].shape[:-2]
        )
        x, mult, add = (
            None if part is None else _flat(part, lead, steps, batch) for part in inputs
        )
        h0, c0 = (
            None if part is None else part.expand(*lead, *part.shape[-2:]).flatten(0, -2)
            for part in state
        )
        lengths = lengths if lengths is None else lengths.repeat(lead.numel())
        fed = (mult, add) if self.feedback else (None, None)
        z, (h_n, c_n) = self._run(x, (h0, c0), weights, *fed, lengths)
        if not self.feedback:
            z = z if mult is None else z * mult
            z = z if add is None else z + add
            if lengths is not None:
                z = z * length_mask(lengths, steps).unsqueeze(-1)
        if not lead:
            return z, (h_n, c_n)
        z = z.view(steps, *lead, batch, -1).movedim(0, -3)
        final = tuple(None if p is None else p.view(*lead, batch, -1) for p in (h_n, c_n))
        return z, final

    def _run(
        self,
        x: Tensor,
        state: State,
        weights: Weights,
        mult: Tensor | None,
        add: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """One layer over (T, B, I) by the fastest exact way its cell and noise allow."""
        cell = self.cell
        if mult is None and add is None and cell.kernel is not None:
            return one_layer(cell.kernel, x, state, weights, lengths)
        if mult is None and cell.folds:
            return fold(cell, x, state, weights, add, lengths)
        gates = cell.project(x, weights).contiguous()
        z, c = scan(cell, gates, *state, weights, mult, add)
        if lengths is None:
            return z, (z[-1], None if c is None else c[-1])
        last = (lengths - 1, torch.arange(x.shape[1], device=x.device))
        final = (z[last], None if c is None else c[last])
        return z * length_mask(lengths, x.shape[0]).unsqueeze(-1), final

    def _timesteps(
        self,
        layer: int,
        x: Tensor,
        state: State,
        weights: Weights,
        noise: Noise,
        spread: Tensor | None,
        site: Site,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """One layer as the paper writes it: a sample site for each step."""
        assert spread is not None
        gates = self.cell.project(x, weights)
        spread = self._broadcastable(spread)
        z, c = (None if part is None else part.unsqueeze(-3) for part in state)
        assert z is not None
        zs, hs, cs = [], [], []
        for t in range(x.shape[-3]):
            h, c = self.cell.step(gates[..., t : t + 1, :, :], z, c, weights)
            law = noise.distribution(h, spread).to_event(1)
            mask = None if site.mask is None else site.mask[t : t + 1]
            noisy = self._sample(f"z_{layer}_{t}", law, (site.batch,), mask)
            z = noisy if self.feedback else h
            zs.append(noisy)
            hs.append(z)
            cs.append(c)
        out = torch.cat(torch.broadcast_tensors(*zs), -3)
        if lengths is None:
            return out, (z.squeeze(-3), None if c is None else c.squeeze(-3))
        out = out * length_mask(lengths, x.shape[-3]).unsqueeze(-1)
        columns = torch.arange(x.shape[-2], device=x.device)

        def last(parts: list[Any]) -> Tensor:
            whole = torch.cat(torch.broadcast_tensors(*parts), -3)
            return whole[..., lengths - 1, columns, :]

        return out, (last(hs), None if c is None else last(cs))

    def _clean(
        self, x: Tensor, state: State, weights: list[Weights], lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """The mean path z = h: torch's own kernel for the whole stack where there is one."""
        kernel = self.cell.kernel
        if kernel is not None and lengths is None and x.dim() == 3 and state[0].dim() == 3:
            return fused(kernel, x, state, weights, self.dropout, self.training)
        finals = []
        for layer, one in enumerate(weights):
            start = (
                state[0][..., layer, :, :],
                None if state[1] is None else state[1][..., layer, :, :],
            )
            x, final = self._sequence(x, start, one, None, None, None, lengths)
            finals.append(final)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        cs = [c for _, c in finals if c is not None]
        return x, (torch.stack([h for h, _ in finals], -3), torch.stack(cs, -3) if cs else None)

    def _broadcastable(self, spread: Tensor) -> Tensor:
        """A spread that broadcasts with (\\*S, T, B, H); a prior may have added dimensions."""
        per_unit = spread.dim() > 0 and spread.shape[-1] == self.hidden_size
        return spread if per_unit or spread.dim() == 0 else spread.unsqueeze(-1)

    def _weights(self) -> list[Weights]:
        """The weights of each layer, read by attribute so that a prior on one takes effect."""
        layers = []
        for layer in range(self.num_layers):
            w_ih = getattr(self, f"weight_ih_l{layer}")
            w_hh = getattr(self, f"weight_hh_l{layer}")
            biases = (
                (getattr(self, f"bias_ih_l{layer}"), getattr(self, f"bias_hh_l{layer}"))
                if self.bias
                else (None, None)
            )
            if w_ih.dim() > 2 or w_hh.dim() > 2:
                raise ValueError(
                    "a prior on the weights cannot be drawn once per particle of a vectorised "
                    f"plate, got a weight with shape {tuple(w_hh.shape)}; use "
                    "vectorize_particles=False"
                )
            layers.append(Weights(w_ih, w_hh, *biases))
        return layers

    def _start(self, hx: Any, x: Tensor, batch: int) -> State:
        """The carried state (h, c) with shapes (\\*S, L, B, H), zeros if none was given."""
        shape = (self.num_layers, batch, self.hidden_size)
        has_cell = self.cell.name == "lstm"
        if hx is None:
            zeros = x.new_zeros(shape)
            return zeros, zeros if has_cell else None
        if isinstance(hx, (tuple, list)) != has_cell or (has_cell and len(hx) != 2):
            wanted = "a pair (h, c)" if has_cell else "one tensor h"
            raise TypeError(f"the state of {type(self).__name__} is {wanted}, got {type(hx)}")
        parts = tuple(hx) if has_cell else (hx,)
        for part in parts:
            if tuple(part.shape[-3:]) != shape or (part.dim() > 3 and not am_i_wrapped()):
                raise ValueError(
                    f"each part of the state must have shape {shape}, got {tuple(part.shape)}"
                )
        return parts[0], parts[1] if has_cell else None

    def _torch_state(self, state: Any) -> Any:
        return state[0] if state[1] is None else tuple(state)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        """Loads a torch module's state_dict too: it knows no spread, which keeps its value."""
        absent: list[str] = []
        super()._load_from_state_dict(  # type: ignore[no-untyped-call]
            state_dict, prefix, metadata, strict, absent, *rest
        )
        missing.extend(key for key in absent if not key.startswith(f"{prefix}spread_l"))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if any(self.noise):
            same = all(one == self.noise[0] for one in self.noise)
            text += f", noise={self.noise[0] if same else list(self.noise)}"
        return text


def _map_state(hx: Any, change: Any) -> Any:
    if hx is None:
        return None
    return tuple(change(part) for part in hx) if isinstance(hx, (tuple, list)) else change(hx)


def _squeezed(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.squeeze(-2)


def _flat(part: Tensor, lead: torch.Size, steps: int, batch: int) -> Tensor:
    """(\\*S, T or 1, B or 1, F) -> (T, S·B, F)."""
    part = part.expand(*lead, steps, batch, part.shape[-1])
    return part if not lead else part.movedim(-3, 0).reshape(steps, -1, part.shape[-1])


class NoisyRNN(_Noisy, nn.RNN, PyroModule):
    """``torch.nn.RNN`` with a noisy hidden state; ``nonlinearity`` knows two more values.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.RNN``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        noise, spread, sites, tied, feedback: as in :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> rnn = NoisyRNN(3, 5, nonlinearity="sigmoid", noise=Additive(dist.Normal(0.0, 1.0)))
        >>> output, h = rnn(torch.randn(7, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Noise | Sequence[Noise | None] | None = None,
        spread: Spread | Sequence[Spread] = 0.5,
        sites: Literal["sequence", "timestep"] = "sequence",
        tied: bool = False,
        feedback: bool = True,
    ) -> None:
        known = ("tanh", "relu", "sigmoid", "identity")
        if nonlinearity not in known:
            raise ValueError(
                f"unknown nonlinearity {nonlinearity!r}; the known ones are {', '.join(known)}"
            )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity="relu" if nonlinearity == "relu" else "tanh",
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity
        self._add_noise(CELLS[nonlinearity], noise, spread, sites, tied, feedback)


class NoisyLSTM(_Noisy, nn.LSTM, PyroModule):
    """``torch.nn.LSTM`` with a noisy hidden state: z_t ~ p(z_t | h_t, γ), E[z_t | h_t] = h_t.

    Takes the constructor arguments and the call of ``torch.nn.LSTM``, holds the same
    parameters, and is an instance of it. ``train()`` draws noise, ``eval()`` runs the mean path
    z = h. The cell state c stays clean. Inside a Pyro program every draw is a sample site,
    named after the module: ``noise_{layer}`` and a deterministic ``z_{layer}``, or
    ``z_{layer}_{t}``.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.LSTM``. ``bidirectional`` and ``proj_size`` are refused.
        noise: one noise for all layers or one per layer; None is the deterministic layer.
        spread: γ, for all layers or one per layer: a number (fixed), :class:`Learned` (a
            constrained ``pyro.param`` named ``spread_l{layer}``), or a distribution (a prior).
            It is a standard deviation for additive noise and a coefficient of variation for
            multiplicative noise.
        sites: ``"sequence"`` has one sample site per layer, the noise ε of the whole sequence,
            and runs at the speed of torch's kernels; ``"timestep"`` has one per layer and step,
            the state z_t itself, as the paper writes it, and runs a Python loop. Both define
            the same joint. A :class:`MeanParameterized` noise has sites per timestep in
            either.
        tied: draw ε once per sequence instead of once per step (variational dropout's way).
        feedback: whether the next step reads the noisy state, as in the paper; False adds the
            noise only to what the layer hands up.

    Raises:
        ValueError: for ``bidirectional``, ``proj_size``, a spread that is not positive, as many
            noises or spreads as there are not layers, or a noise that cannot have this cell's
            states as its means.
        TypeError: if ``noise`` or ``spread`` is of another kind.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> lstm = NoisyLSTM(3, 5, 2, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> output, (h, c) = lstm(torch.randn(7, 2, 3))
        >>> output.shape, isinstance(lstm, torch.nn.LSTM)
        (torch.Size([7, 2, 5]), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Noise | Sequence[Noise | None] | None = None,
        spread: Spread | Sequence[Spread] = 0.5,
        sites: Literal["sequence", "timestep"] = "sequence",
        tied: bool = False,
        feedback: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        self._add_noise(CELLS["lstm"], noise, spread, sites, tied, feedback)


class NoisyGRU(_Noisy, nn.GRU, PyroModule):
    """``torch.nn.GRU`` with a noisy hidden state.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.GRU``.
        noise, spread, sites, tied, feedback: as in :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> gru = NoisyGRU(3, 5, noise=Additive(dist.Gumbel(0.0, 1.0)), spread=Learned(0.3))
        >>> gru.spread[0].item() > 0.1
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Noise | Sequence[Noise | None] | None = None,
        spread: Spread | Sequence[Spread] = 0.5,
        sites: Literal["sequence", "timestep"] = "sequence",
        tied: bool = False,
        feedback: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self._add_noise(CELLS["gru"], noise, spread, sites, tied, feedback)


def from_torch(module: nn.RNNBase, **noise: Any) -> NoisyRNN | NoisyLSTM | NoisyGRU:
    """A noisy RNN around an existing torch one; they share their parameters.

    Args:
        module: a ``torch.nn.RNN``, ``LSTM`` or ``GRU``.
        **noise: ``noise``, ``spread``, ``sites``, ``tied``, ``feedback`` of :class:`NoisyLSTM`.

    Raises:
        TypeError: if ``module`` is none of the three.
        ValueError: as :class:`NoisyLSTM` does.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> lstm = torch.nn.LSTM(3, 5)
        >>> noisy = from_torch(lstm, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> noisy.weight_hh_l0 is lstm.weight_hh_l0
        True
    """
    kinds: tuple[tuple[type[nn.RNNBase], Any], ...] = (
        (nn.LSTM, NoisyLSTM),
        (nn.GRU, NoisyGRU),
        (nn.RNN, NoisyRNN),
    )
    kind = next((noisy for plain, noisy in kinds if isinstance(module, plain)), None)
    if kind is None:
        raise TypeError(f"from_torch wraps torch.nn.RNN, LSTM or GRU, got {type(module).__name__}")
    options: dict[str, Any] = {
        name: getattr(module, name)
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    }
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    weight: Tensor = module.weight_hh_l0  # type: ignore[assignment]
    noisy = kind(
        module.input_size,
        module.hidden_size,
        **options,
        device="meta",  # no weights are drawn: torch's random state stays as it was
        dtype=weight.dtype,
        **noise,
    )
    for name, parameter in module.named_parameters():
        setattr(noisy, name, parameter)
    for name, buffer in noisy.named_buffers():
        noisy.register_buffer(name, buffer.to(weight.device), persistent=False)
    for name, parameter in noisy.named_parameters():
        parameter.data = parameter.data.to(weight.device)
    noisy.train(module.training)
    return noisy  # type: ignore[no-any-return]
