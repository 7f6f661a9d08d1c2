"""The common base of the noisy RNNs: the forms of a call, and the steps of a call."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from noisin_pyro.cells.base import Cell, State, Weights
from noisin_pyro.cells.zoneout import with_zoneout
from noisin_pyro.layers.layer import clean_layers, is_transformed
from noisin_pyro.lengths import Lengths
from noisin_pyro.naming import claim_name, repeat_suffix
from noisin_pyro.nn import arguments
from noisin_pyro.nn.drawing import draw
from noisin_pyro.nn.forms import map_state, packed_like
from noisin_pyro.nn.noisy_module import NoisyModule
from noisin_pyro.nn.provenance import tracked
from noisin_pyro.nn.sequences import run_sequences
from noisin_pyro.nn.timesteps import run_timesteps
from noisin_pyro.nn.tracks import Layers, make_layers
from noisin_pyro.parameters import in_context, priors_of, read_priors
from noisin_pyro.sites import Call, Plates

__all__ = ["NoisyRecurrence"]


class NoisyRecurrence(NoisyModule):
    """The common base of the noisy RNNs; see :class:`NoisyLSTM` for the constructor's arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if am_i_wrapped():
            self._claim_name()
        # By name, since torch.compile of 2.15 takes no super() in subclasses of torch's RNNs.
        return NoisyModule.__call__(self, *args, **kwargs)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        sample: bool | None = None,
        lengths: Lengths | None = None,
        plates: Plates | None = None,
        epsilon: Sequence[Tensor | None] | None = None,
        call: Call | None = None,
    ) -> Any:
        """Runs the RNN.

        Args:
            input: the input, with shape (T, B, I), (B, T, I) if ``batch_first``, (T, I) unbatched,
                or a ``PackedSequence``. Under vectorised particles in Pyro, particle dimensions
                may come first.
            hx: the initial state in torch's form, each part with shape (D·L, B, H); D is 2 if
                ``bidirectional``, otherwise 1. Zeros if omitted. Its first part is the noisy state
                z, but h with ``noise_to="output"`` or ``"weights"``.
            sample: True draws noise, False runs the mean path z = h; by default noise is drawn
                while ``training``.
            lengths: each sequence's number of steps, as a tensor with shape (B,) or a list; None
                for T. The output past a sequence's end is zero, and the final state is that of its
                last step.
            plates: the ``time`` (dim −2) and ``batch`` (dim −1) plates of a surrounding Pyro model,
                not yet entered. By default the RNN makes plates named after itself.
            epsilon: the result of :meth:`draw_noise`, or tensors that broadcast with it in the time
                or batch dimension; by default noise is drawn in this call. The mean path, so that
                of ``eval()`` too, has no noise and ignores it.
            call: the options ``sample``, ``lengths`` and ``plates`` of the surrounding model's
                call, used instead of these arguments.

        Returns:
            The output, with the shape of torch's RNNs (..., D·H), and the final state in the form
            of ``hx``. The output is z, but h with ``noise_to="recurrence"`` or ``"weights"``.

        Raises:
            ValueError: if a shape, dtype or length does not fit, or if a noise without a pathwise
                gradient is drawn without a sample site while gradients are enabled.
            TypeError: if the state has another type.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, sample, lengths, plates, epsilon)
        if isinstance(input, Tensor):
            arguments.check_dense(input)
        most = math.inf if am_i_wrapped() else 3
        if not isinstance(input, Tensor) or not 2 <= input.dim() <= most:
            shape = tuple(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must have shape (T, B, I) or (T, I), got {shape}")
        unbatched = input.dim() == 2
        if unbatched:
            input = input.unsqueeze(1)
            if hx is not None:
                arguments.check_state(type(self).__name__, hx, self._state_shapes())
                hx = map_state(hx, lambda part: part.unsqueeze(-2))
        swapped = self.batch_first and not unbatched
        x = input.transpose(-3, -2) if swapped else input
        if call is None:
            call = self._begin(x.shape[-3:-1], x.device, lengths, sample, plates, epsilon)
        run = NoisyRecurrence._run
        if "torch._dynamo" in sys.modules:  # else nothing is being compiled
            run = torch.compiler.disable(run)  # one opaque call, as torch.compile treats nn.LSTM
        z, state = run(self, x, hx, call, epsilon)
        if unbatched:
            return z.squeeze(-2), map_state(state, lambda part: part.squeeze(-2))
        return (z.transpose(-3, -2) if swapped else z), state

    def draw_noise(
        self,
        steps: int,
        batch: int,
        lengths: Lengths | None = None,
        plates: Plates | None = None,
        *,
        call: Call | None = None,
    ) -> list[Tensor | None]:
        """Issues the sample sites ``noise_{layer}`` of a sequence, without running the RNN.

        A guide calls this once for each call of the RNN in the model, in the same order.

        Args:
            steps: T.
            batch: B.
            lengths: each sequence's number of steps, with shape (B,), or None for T.
            plates: as in :meth:`forward`.
            call: as in :meth:`forward`.

        Returns:
            ε of each layer and direction, with shape (T, B, H), or (1, B, H) if ``tied``; None for
            a layer without noise or with a site per timestep.

        Raises:
            ValueError: if a length does not fit.
        """
        if am_i_wrapped():
            self._claim_name()
        return self._draw_noise(steps, batch, lengths, plates, call)

    @in_context
    def _draw_noise(
        self,
        steps: int,
        batch: int,
        lengths: Lengths | None,
        plates: Plates | None,
        call: Call | None,
    ) -> list[Tensor | None]:
        like = self.like
        if call is None:
            call = self._begin((steps, batch), like.device, lengths, True, plates)
        if self.sites is None:
            call = call.without_sites()
        drawn: list[Tensor | None] = []
        for layer, suffix in self._tracks:
            noise = None if self._samples_steps(self.noise[layer]) else self.noise[layer]
            name = f"noise_{layer}{suffix}"
            drawn.append(draw(self, name, noise, self.hidden_size, like, call, self.tied))
        return drawn

    def _begin(
        self,
        shape: Sequence[int],
        device: torch.device,
        lengths: Lengths | None,
        sample: bool | None,
        plates: Plates | None,
        epsilon: Sequence[Tensor | None] | None = None,
    ) -> Call:
        """The options of a call on ``shape`` = (T, B); arguments as in :meth:`forward`."""
        call = Call.begin(self, shape, device, lengths, sample, tied=self.tied, plates=plates)
        if self.sites is None or not (call.active and call.noisy and any(self.noise)):
            return call
        site = self._first_site() if epsilon is None else "state"  # what this call issues
        return replace(call, suffix=repeat_suffix(call.name(self, site)))

    def _packed(
        self,
        input: PackedSequence,
        hx: Any,
        sample: bool | None,
        lengths: Lengths | None,
        plates: Plates | None,
        epsilon: Sequence[Tensor | None] | None,
    ) -> tuple[PackedSequence, Any]:
        if lengths is not None:
            raise ValueError("a PackedSequence knows its lengths; leave out lengths=")
        x, lengths = pad_packed_sequence(input)
        call = self._begin(x.shape[:2], x.device, lengths, sample, plates, epsilon)
        z, state = self._run(x, hx, call, epsilon)
        return packed_like(input, z, lengths), state

    def _run(
        self, x: Tensor, hx: Any, call: Call, epsilon: Sequence[Tensor | None] | None
    ) -> tuple[Tensor, Any]:
        """Runs the RNN on an input with shape (\\*S, T, B, I), where \\*S are particles."""
        # Weights and spreads are read before any plate is entered, or a prior on one of them would
        # be drawn for each step and sequence.
        if am_i_wrapped():
            read_priors(prior for prior in priors_of(self) if prior[1] not in self._spreads)
        weights = self._weights()
        arguments.check_input(x, self.input_size, self.like)
        state = self._start(hx, x, call.batch)
        if self.sites is None:
            call = call.without_sites()
        noisy = call.noisy and any(self.noise)
        rate = self.dropout if call.dropping else 0.0
        cell = self.cell
        if any(self.zoneout):
            sizes = cell.state_sizes(self.hidden_size)
            cell = with_zoneout(cell, sizes, self.zoneout, call.dropping)
        kernels = cell.kernel is not None and not is_transformed(
            x, state, weights, None, call.lengths
        )
        if not noisy and kernels and not (rate and self.tied):
            options = (call.lengths, rate, call.dropping, self.bidirectional)
            z, final = tracked(clean_layers, cell, x, state, weights, *options)
        else:
            layers = self._layers(cell, weights, state, noisy, rate, call, epsilon)
            if call.mask is not None:  # the padding may contain NaN
                x = x.masked_fill(~call.mask.unsqueeze(-1), 0)
            run = run_timesteps if noisy and self.samples_timesteps else run_sequences
            z, final = run(layers, x, call)
        if noisy or call.owner is not self or call.given is not None:
            call.record_state(self, "state", final[0])
        return z, final if len(final) > 1 else final[0]

    def _layers(
        self,
        cell: Cell[Any],
        weights: list[Any],
        state: State,
        noisy: bool,
        rate: float,
        call: Call,
        epsilon: Sequence[Tensor | None] | None,
    ) -> Layers:
        """The layers of a call, with the noise of whole sequences drawn or checked.

        Args:
            cell: the cell, with zoneout if there is any.
            weights: the weights of each layer and direction.
            state: the initial state, each part with shape (\\*S, D·L, B, H).
            noisy: whether noise is drawn.
            rate: the probability of dropout between layers, 0 if it does not act.
            call: the call's options.
            epsilon: that of :meth:`forward`.
        """
        count = len(weights)
        spreads = self.spread if noisy else (None,) * count
        if not noisy:
            epsilon = [None] * count
        elif epsilon is None:
            epsilon = self.draw_noise(call.steps, call.batch, call=call)
        else:
            affine = [one is not None and not self._samples_steps(one) for one in self.noise]
            shape = (1 if self.tied else call.steps, call.batch, self.hidden_size)
            wanted = [affine[layer] for layer, _ in self._tracks]
            arguments.check_drawn(epsilon, wanted, shape, self.like.dtype)
        tracks = (self._tracks, weights, state, spreads, epsilon)
        return make_layers(self, cell, *tracks, call.readout, rate)

    def _first_site(self) -> str:
        """The name of a sample site of every noisy call: a ``noise_{layer}`` if there is any.

        Only called if some layer has a noise.
        """
        layers = [layer for layer, noise in enumerate(self.noise) if noise is not None]
        drawn = [layer for layer in layers if not self._samples_steps(self.noise[layer])]
        return f"noise_{drawn[0]}" if drawn else f"z_{layers[0]}_0"

    def _claim_name(self) -> None:
        claim_name(self, "weight_hh_l0", self._parameters.get("weight_hh_l0"))

    def _weights(self) -> list[Any]:
        """The weights of each layer and direction, in the form of the cell.

        They are read by attribute, so that Pyro samples a weight with a prior.
        """
        tracks = []
        for layer, suffix in self._tracks:
            w_ih, w_hh = (getattr(self, f"weight_{part}_l{layer}{suffix}") for part in ("ih", "hh"))
            b_ih, b_hh = (
                getattr(self, f"bias_{part}_l{layer}{suffix}") if self.bias else None
                for part in ("ih", "hh")
            )
            arguments.check_weights((w_ih, 2), (w_hh, 2), (b_ih, 1), (b_hh, 1))
            tracks.append(Weights(w_ih, w_hh, b_ih, b_hh))
        return tracks

    def _state_shapes(self, *batch: int) -> list[tuple[int, ...]]:
        sizes = self.cell.state_sizes(self.hidden_size)
        return [(len(self._tracks), *batch, size) for size in sizes]

    def _start(self, hx: Any, x: Tensor, batch: int) -> State:
        """The initial state, each part with shape (\\*S, D·L, B, H); zeros if ``hx`` is None."""
        shapes = self._state_shapes(batch)
        if hx is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        state = arguments.check_state(type(self).__name__, hx, shapes)
        arguments.check_state_dtype(state, x)
        return state
