"""SequenceModel: a Pyro model of sequences with a noisy RNN as its latent states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from noisin_pyro.layers.layer import add_noise, dropout
from noisin_pyro.lengths import Lengths, filled
from noisin_pyro.models.arguments import check_emitted, check_rate, check_rnn
from noisin_pyro.models.drawn import Drawn
from noisin_pyro.nn.arguments import check_dense, spread_with_noise
from noisin_pyro.nn.drawing import draw
from noisin_pyro.nn.forms import map_state
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.nn.weight_drop import WeightDrop
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.parameters import Freezable, apart, in_context, priors_of, read_priors
from noisin_pyro.sites import Call, Readout
from noisin_pyro.spread.conversion import SpreadLike, as_spread
from noisin_pyro.spread.saved import SavesSpreads

__all__ = ["Drawn", "SequenceModel", "check_model", "detach_state"]


def detach_state(state: Any) -> Any:
    """The carried state detached from its graph, for truncated backpropagation through time.

    Args:
        state: a state that a model or a noisy RNN returned: a tensor or a tuple of tensors.

    Returns:
        The detached state, in the same form.

    Example:
        >>> import torch
        >>> detach_state((torch.ones(1, requires_grad=True), None))
        (tensor([1.]), None)
    """
    return map_state(state, lambda part: part.detach())


class SequenceModel(SavesSpreads, Freezable, PyroModule):
    """The paper's generative process: noisy states z, then observations y given z.

        z_t ~ p(z_t | h_t(x_t, z_{t-1}), γ)        one latent site per layer, or per layer and step
        y_t ~ emission(z_t)                        one observed site ``y`` for the sequence

    All sites are in the same plates ``time`` (dim −2) and ``batch`` (dim −1).

    Args:
        embedding: a function from x with shape (T, B, \\*) to the RNN's input with shape (T, B, I).
        rnn: a noisy RNN such as :class:`NoisyLSTM` or :class:`NoisyRecurrent`, with
            ``batch_first=False`` and not bidirectional.
        emission: a function from z with shape (\\*, T, B, H) to a distribution with batch shape
            (\\*, T, B). It has no sample statements: neither :class:`PriorGuide` nor
            :class:`FilteringELBO` would know of them.
        input_noise: an additive or multiplicative noise on the embedded input (the paper's
            "input level").
        input_spread: the γ of ``input_noise``, any value of the RNN's ``spread``. This attribute
            can be set at any time.
        dropout_input: the probability of zeroing a unit of the embedded input, while training. If
            the RNN is ``tied``, all steps of a sequence share a mask, which counts as noise.
        dropout_output: the same for the input of the emission.
        name: the prefix of the names of parameters and sites in Pyro. Two models in one program, or
            under the same param store, need different names.

    Raises:
        TypeError: if ``rnn`` is no noisy RNN, or ``input_noise`` is neither additive nor
            multiplicative.
        ValueError: if the RNN is ``batch_first`` or ``bidirectional``, a probability lies outside
            [0, 1), or ``input_spread`` is invalid or given without ``input_noise``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, NoisyGRU, NormalEmission
        >>> rnn = NoisyGRU(1, 8, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.2)
        >>> model = SequenceModel(torch.nn.Identity(), rnn, NormalEmission(8, 1))
        >>> y, state = model(torch.randn(20, 4, 1))
        >>> y.shape, state.shape
        (torch.Size([20, 4, 1]), torch.Size([1, 4, 8]))
    """

    embedding: Any
    emission: Any
    _spread_names = ("input_spread",)
    _spread_prefix = "input_spread"

    @spread_with_noise
    def __init__(
        self,
        embedding: Callable[[Tensor], Tensor],
        rnn: NoisyRecurrence,
        emission: Callable[[Tensor], Any],
        *,
        input_noise: AffineNoise | None = None,
        input_spread: SpreadLike = 0.5,
        dropout_input: float = 0.0,
        dropout_output: float = 0.0,
        name: str = "",
    ) -> None:
        super().__init__(name)
        check_rnn(rnn)
        check_rate("dropout_input", dropout_input)
        check_rate("dropout_output", dropout_output)
        if input_noise is not None and not isinstance(input_noise, AffineNoise):
            raise TypeError(f"input_noise must be Additive or Multiplicative, got {input_noise!r}")
        self.embedding = embedding
        self.rnn = rnn
        self.emission = emission
        self.input_noise = input_noise
        self.dropout_input, self.dropout_output = dropout_input, dropout_output
        self._spreads = {}
        if input_noise is not None:
            self.input_spread = input_spread

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "input_spread":
            super().__setattr__(name, value)
            return
        if self.input_noise is None:
            raise AttributeError("input_spread is the γ of input_noise, which this model lacks")
        spread = as_spread(value)
        spread.attach(self, name, self.rnn.input_size, self.rnn.like)
        self._spreads[name] = spread

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with apart(self):
            return super().__call__(*args, **kwargs)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: Any = None,
        lengths: Lengths | None = None,
        *,
        sample: bool | None = None,
    ) -> tuple[Tensor, Any]:
        """Runs the generative process, with ``y`` observed if it is given and drawn otherwise.

        Args:
            x: the inputs, with shape (T, B) or (T, B, \\*).
            y: the targets, with shape (T, B, \\*E), where \\*E is the emission's event shape.
            state: the initial state, each part with shape (L, B, H); zeros if omitted.
            lengths: each sequence's number of steps, with shape (B,), or None for T. Later steps
                have log-probability 0.
            sample: True draws noise, False runs the mean path; by default noise is drawn while
                ``training``.

        Returns:
            y, with shape (T, B, \\*E), and the final state, in the form of ``state``.

        Raises:
            TypeError: if the emission returns no Pyro distribution.
            ValueError: if a shape or a length does not fit.
        """
        call = self._begin(x, lengths, sample)
        emitted, state = self._run(x, state, call, self._draw(call))
        check_emitted(emitted, call.steps, call.batch)
        wanted = emitted.batch_shape[-2:] + emitted.event_shape
        if y is not None and y.shape[-len(wanted) :] != wanted:
            raise ValueError(f"y must have shape {tuple(wanted)}, got {tuple(y.shape)}")
        observed = y
        if y is not None and call.mask is not None:
            observed = filled(y, call.mask.reshape(call.mask.shape + (1,) * (len(wanted) - 2)))
        drawn = call.emit(self, "y", emitted, observed)
        return (drawn if y is None or drawn is not observed else y), state

    @in_context
    def latents(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: Any = None,
        lengths: Lengths | None = None,
        *,
        sample: bool | None = None,
    ) -> None:
        """Issues the latent sites of :meth:`forward` without ``y``; the arguments are the same.

        The RNN runs only if it has a sample site per timestep.

        Raises:
            ValueError: if the RNN has a sample site per timestep and a dropout before it is active.
                In a guide its mask would differ from the model's, so the guide would not equal the
                prior.
        """
        call = self._begin(x, lengths, sample).without_records()
        drawn = self._draw(call)
        if not call.noisy or not self.rnn.samples_timesteps:
            return
        dropping = {name: rate for name, rate in self.dropout_before_sites().items() if rate}
        if self.training and dropping:
            rates = " and ".join(f"{name}={rate}" for name, rate in dropping.items())
            raise ValueError(
                f"{rates} would draw another mask in the guide than in the model, so a prior guide "
                "with a site per timestep would not equal the prior; use sites='sequence' or "
                "NoisinELBO"
            )
        with poutine.block(hide_fn=_is_deterministic):  # those of the embedding and the emission
            self._run(x, state, call, drawn)

    def dropout_before_sites(self) -> dict[str, float]:
        """The rates of all dropout on which a noisy state depends, by the names of the options.

        They include zoneout, and torch's dropout modules and weight drop in the embedding and the
        RNN.
        """
        rates = {"dropout_input": self.dropout_input, "dropout": self.rnn.dropout}
        rates["zoneout"] = max(self.rnn.zoneout)
        for name in ("embedding", "rnn"):
            child = getattr(self, name)
            parts = child.named_modules(prefix=name) if isinstance(child, nn.Module) else ()
            for path, part in parts:
                if isinstance(part, (_DropoutNd, WeightDrop)) and part.training:
                    rates[f"{path}.p"] = part.p
        return rates

    @in_context
    def predict(
        self,
        x: Tensor,
        state: Any = None,
        lengths: Lengths | None = None,
        *,
        sample: bool | None = None,
        readout: Readout = "noisy",
        drawn: Drawn | None = None,
    ) -> tuple[Any, Any]:
        """The emission's distribution p(y_t | z_t) in one pass, and the final state.

        Args:
            x, state, lengths, sample: as in :meth:`forward`.
            readout: the input of the emission: ``"noisy"`` for the state z of the top layer, or
                ``"mean"`` for the mean h of z. It does not change the recurrence and the final
                state. With ``noise_to="recurrence"`` or ``"weights"`` it is always h.
            drawn: the result of :meth:`draw_noise`. It is used whatever ``sample`` is, and then no
                noise is a sample site.

        Returns:
            A distribution with batch shape (T, B), and the final state, in the form of ``state``.

        Raises:
            ValueError: if a shape or a length does not fit, ``readout`` is unknown, or ``drawn`` is
                that of another model or of another number of steps or sequences.
        """
        call = self._begin(x, lengths, True if drawn is not None else sample, readout)
        if drawn is None:
            return self._run(x, state, call, self._draw(call))
        rnn, inputs = self.rnn, self.rnn.input_size if self.input_noise else None
        drawn.check(call.steps, call.batch, inputs, rnn.hidden_size, rnn.tied)
        return self._run(x, state, call.without_sites(), drawn)

    @in_context
    def draw_noise(self, steps: int, batch: int) -> Drawn:
        """Draws the noise for one or several calls of :meth:`predict`.

        Args:
            steps: T.
            batch: B.

        Returns:
            The noise of the input and of each layer.

        Example:
            >>> import torch, pyro.distributions as dist
            >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
            >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
            >>> model, x = LanguageModel(10, rnn), torch.randint(10, (5, 2))
            >>> drawn = model.draw_noise(5, 2)
            >>> one, _ = model.predict(x, drawn=drawn)
            >>> other, _ = model.predict(x, drawn=drawn.map(torch.neg))
        """
        return self._draw(Call(self, steps, batch, noisy=True, dropping=False))

    def _begin(
        self, x: Tensor, lengths: Lengths | None, sample: bool | None, readout: Readout = "noisy"
    ) -> Call:
        if isinstance(x, Tensor):
            check_dense(x)
        if not isinstance(x, Tensor) or x.dim() < 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must have shape (T, B) or (T, B, ...), got {got}")
        tied = self.rnn.tied
        return Call.begin(self, x.shape[:2], x.device, lengths, sample, tied=tied, readout=readout)

    def _draw(self, call: Call) -> Drawn:
        """Issues the latent sites that do not depend on states: priors, then noise."""
        if call.active:
            read_priors(priors_of(self))
        if not call.noisy:
            return Drawn(None, None)
        on_input = self._draw_input_noise(call)
        return Drawn(on_input, self.rnn.draw_noise(call.steps, call.batch, call=call))

    def _draw_input_noise(self, call: Call) -> Tensor | None:
        like, size = self.rnn.like, self.rnn.input_size
        return draw(self, "input_noise", self.input_noise, size, like, call, tied=False)

    def _run(self, x: Tensor, state: Any, call: Call, drawn: Drawn) -> tuple[Any, Any]:
        tied = self.rnn.tied
        embedded = self._embedded(x, call.dropping)
        if embedded.dim() < 3:
            raise ValueError(
                f"the embedding must return shape (T, B, {self.rnn.input_size}), got "
                f"{tuple(embedded.shape)}; for one number at each step give x shape (T, B, 1)"
            )
        if drawn.input is not None:
            assert self.input_noise is not None
            spread = self._spreads["input_spread"].read(self, "input_spread", drawn.input)
            embedded = add_noise(embedded, *self.input_noise.affine(drawn.input, spread))
        embedded = dropout(embedded, self.dropout_input, call.dropping, tied)
        z, state = self.rnn(embedded, state, epsilon=drawn.rnn, call=call)
        return self.emission(dropout(z, self.dropout_output, call.dropping, tied)), state

    def _embedded(self, x: Tensor, dropping: bool) -> Tensor:
        """The RNN's input (T, B, I) from x with shape (T, B, \\*)."""
        return self.embedding(x)  # type: ignore[no-any-return]


def check_model(function: str, model: Any) -> None:
    """Raises TypeError, naming the function that was called, unless it is a SequenceModel."""
    if not isinstance(model, SequenceModel):
        raise TypeError(
            f"{function} takes a SequenceModel or LanguageModel, got {type(model).__name__}; build "
            "one from your parts, as SequenceModel(embedding, rnn, emission)"
        )


def _is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))
