"""The generative process of a noisy RNN as a Pyro model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch.nn.functional as F
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from noisin_pyro.layers.layer import check_lengths, dropout
from noisin_pyro.nn.emissions import CategoricalEmission
from noisin_pyro.nn.recurrence import hold_spread, read_spread
from noisin_pyro.nn.rnn import NoisyGRU, NoisyLSTM, NoisyRNN
from noisin_pyro.noise.noise import Additive, Multiplicative
from noisin_pyro.noise.spread import Spread
from noisin_pyro.sites import Sites, in_context, own_store

__all__ = ["LanguageModel", "SequenceModel", "detach_state"]

NoisyRNNs = NoisyRNN | NoisyLSTM | NoisyGRU


class Draws(NamedTuple):
    """The noise of one pass, drawn before anything is computed."""

    input: Tensor | None  # (T, B, I)
    rnn: list[Tensor | None]  # per layer (T, B, H)


def detach_state(state: Any) -> Any:
    """The carried state cut off from its history, for truncated backpropagation.

    Args:
        state: a tensor or a tuple of tensors, as a model returns it.

    Example:
        >>> import torch
        >>> detach_state((torch.ones(1, requires_grad=True), None))
        (tensor([1.]), None)
    """
    if isinstance(state, (tuple, list)):
        return tuple(detach_state(part) for part in state)
    return None if state is None else state.detach()


class SequenceModel(PyroModule):
    """The paper's generative process: noisy states z, then observations y given z.

        z_t ~ p(z_t | h_t(x_t, z_{t-1}), γ)        one latent site per layer, or per layer and step
        y_t ~ emission(z_t)                        one observed site ``y`` for the sequence

    Every site stands in the same plates ``time`` (dim −2) and ``batch`` (dim −1).

    Args:
        embedding: maps x with shape (T, B, \\*) to the RNN's input (T, B, I).
        rnn: a :class:`NoisyRNN`, :class:`NoisyLSTM` or :class:`NoisyGRU`, time-major.
        emission: maps z with shape (\\*, T, B, H) to a distribution of batch shape (\\*, T, B).
        input_noise: an additive or multiplicative noise on the embedded input (the paper's
            "input level").
        input_spread: its γ, in any form the RNN's ``spread`` takes.
        dropout_input: probability of zeroing a unit of the embedded input, while training. If the
            RNN is ``tied``, one mask serves all steps of a sequence, and is part of the noise.
        dropout_output: likewise for what the emission reads.

    Raises:
        TypeError: if ``rnn`` is no noisy RNN or ``input_noise`` of another kind.
        ValueError: if the RNN is ``batch_first`` or a probability lies outside [0, 1).

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

    def __init__(
        self,
        embedding: Callable[[Tensor], Tensor],
        rnn: NoisyRNNs,
        emission: Callable[[Tensor], Any],
        *,
        input_noise: Additive | Multiplicative | None = None,
        input_spread: Spread = 0.5,
        dropout_input: float = 0.0,
        dropout_output: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(rnn, (NoisyRNN, NoisyLSTM, NoisyGRU)):
            raise TypeError(
                f"rnn must be a NoisyRNN, NoisyLSTM or NoisyGRU, got {type(rnn).__name__}; "
                "wrap torch's with from_torch"
            )
        if rnn.batch_first:
            raise ValueError("a SequenceModel is time-major: build its RNN with batch_first=False")
        for name, rate in (("dropout_input", dropout_input), ("dropout_output", dropout_output)):
            check_rate(name, rate)
        if input_noise is not None and not isinstance(input_noise, (Additive, Multiplicative)):
            raise TypeError(f"input_noise must be Additive or Multiplicative, got {input_noise!r}")
        self.embedding = embedding
        self.rnn = rnn
        self.emission = emission
        self.input_noise = input_noise
        self.dropout_input, self.dropout_output = dropout_input, dropout_output
        if input_noise is not None:
            hold_spread(self, "input_spread", input_spread, rnn.input_size, rnn.weight_ih_l0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if am_i_wrapped():
            return super().__call__(*args, **kwargs)
        with own_store():
            return nn.Module.__call__(self, *args, **kwargs)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: Any = None,
        lengths: Tensor | None = None,
        *,
        sample: bool | None = None,
    ) -> tuple[Tensor, Any]:
        """The generative process; ``y`` is observed if given and drawn if not.

        Args:
            x: inputs, with shape (T, B) or (T, B, \\*).
            y: targets, with shape (T, B) and the emission's event shape.
            state: the carried state, each part with shape (L, B, H).
            lengths: each sequence's number of steps, with shape (B,); steps past it count
                for nothing.
            sample: True draws noise, False runs the mean path; by default noise is drawn
                while ``training``.

        Returns:
            y and the final state.

        Raises:
            ValueError: if a shape or a length does not fit.
        """
        sites = self._sites(x, lengths)
        law, state = self._run(
            x, state, lengths, sites, sample, self._draw(x, lengths, sites, sample)
        )
        wanted = law.batch_shape[-2:] + law.event_shape
        if y is not None and y.shape[-len(wanted) :] != wanted:
            raise ValueError(f"y must have shape {tuple(wanted)}, got {tuple(y.shape)}")
        return sites.sample("y", law, obs=y), state

    @in_context
    def latents(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: Any = None,
        lengths: Tensor | None = None,
        *,
        sample: bool | None = None,
    ) -> None:
        """Issues the latent sites of :meth:`forward` alone, in its order; see its arguments.

        The RNN runs only if it has a sample site per timestep.

        Raises:
            ValueError: if the RNN has a sample site per timestep above an active dropout, whose
                mask would differ from the model's, so that guide and prior would not be equal.
        """
        sites = self._sites(x, lengths)
        draws = self._draw(x, lengths, sites, sample)
        if not self._noisy(sample) or not self.rnn.samples_timesteps:
            return
        words = getattr(self, "dropout_words", 0.0)
        if self.training and (self.dropout_input or self.rnn.dropout or words):
            raise ValueError(
                f"dropout_words={words}, dropout_input={self.dropout_input} and "
                f"dropout={self.rnn.dropout} draw another mask in the guide than in the model, so "
                "a prior guide with a site per timestep would not equal the prior; use "
                "sites='sequence' or NoisinELBO"
            )
        with poutine.block(hide_fn=_is_deterministic):
            self._run(x, state, lengths, sites, sample, draws)

    @in_context
    def predict(
        self,
        x: Tensor,
        state: Any = None,
        lengths: Tensor | None = None,
        *,
        sample: bool | None = None,
    ) -> tuple[Any, Any]:
        """The emission distribution p(y_t | z_t) along one pass, and the final state.

        Arguments are those of :meth:`forward`.
        """
        sites = self._sites(x, lengths)
        draws = self._draw(x, lengths, sites, sample)
        return self._run(x, state, lengths, sites, sample, draws)

    def _noisy(self, sample: bool | None) -> bool:
        return self.training if sample is None else sample

    def _sites(self, x: Tensor, lengths: Tensor | None) -> Sites:
        if x.dim() < 2:
            raise ValueError(f"x must have shape (T, B) or (T, B, ...), got {tuple(x.shape)}")
        steps, batch = x.shape[:2]
        if lengths is not None:
            check_lengths(lengths, steps, batch)
            lengths = lengths.to(x.device)
        return Sites(self, steps, batch, lengths)

    def _draw(self, x: Tensor, lengths: Tensor | None, sites: Sites, sample: bool | None) -> Draws:
        """Issues the latent sites that need no computation: priors, then noise."""
        if sites.active:
            for module in self.modules():
                for name in getattr(module, "_pyro_samples", ()):
                    getattr(module, name)  # cached for this call, and drawn outside the plates
        if not self._noisy(sample):
            return Draws(None, [None] * self.rnn.num_layers)
        steps, batch = x.shape[:2]
        noise = None
        if self.input_noise is not None:
            shape = (steps, batch, self.rnn.input_size)
            law: Any = self.input_noise.epsilon(self.rnn.weight_ih_l0).expand(shape)
            noise = sites.sample("input_noise", law.to_event(1))
        return Draws(noise, self.rnn.draw_noise(steps, batch, lengths, sites.plates))

    def _run(
        self,
        x: Tensor,
        state: Any,
        lengths: Tensor | None,
        sites: Sites,
        sample: bool | None,
        draws: Draws,
    ) -> tuple[Any, Any]:
        tied = self.rnn.tied
        dropping = self._noisy(sample) if tied else self.training
        embedded = self._embedded(x, dropping)
        if draws.input is not None:
            assert self.input_noise is not None
            spread = read_spread(self, "input_spread", draws.input)
            mult, add = self.input_noise.affine(draws.input, spread)
            embedded = embedded if mult is None else embedded * mult
            embedded = embedded if add is None else embedded + add
        embedded = dropout(embedded, self.dropout_input, dropping, tied)
        z, state = self.rnn(
            embedded,
            state,
            sample=self._noisy(sample),
            lengths=lengths,
            plates=sites.plates,
            epsilon=draws.rnn,
        )
        return self.emission(dropout(z, self.dropout_output, dropping, tied)), state

    def _embedded(self, x: Tensor, dropping: bool) -> Tensor:
        """(T, B, \\*) -> (T, B, I)."""
        return self.embedding(x)  # type: ignore[no-any-return]


class LanguageModel(SequenceModel):
    """A :class:`SequenceModel` of words: embedding, noisy RNN, softmax.

    The embedding and the softmax matrix start as U(−0.1, 0.1), as in Zaremba et al. (2014).
    torch's own N(0, 1) embedding learns more slowly: one epoch of a tanh RNN on Penn Treebank
    reached a perplexity of 207 with it and 198 without.

    Args:
        vocab_size: K.
        rnn: the noisy RNN; its input size is the embedding's.
        tied_weights: share the embedding's matrix with the softmax (needs input size = hidden
            size).
        dropout_words: probability of dropping a word type from a sequence: wherever the word
            stands in it, its embedding is zero (Gal and Ghahramani 2016, section 4.2).
        **options: ``input_noise``, ``input_spread``, ``dropout_input``, ``dropout_output`` of
            :class:`SequenceModel`.

    Raises:
        ValueError: if ``tied_weights`` is asked of an RNN whose sizes differ, or a probability
            lies outside [0, 1).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative, NoisyLSTM
        >>> rnn = NoisyLSTM(16, 16, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> model = LanguageModel(100, rnn, tied_weights=True)
        >>> law, (h, c) = model.predict(torch.randint(100, (7, 2)))
        >>> law.logits.shape
        torch.Size([7, 2, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        rnn: NoisyRNNs,
        *,
        tied_weights: bool = False,
        dropout_words: float = 0.0,
        **options: Any,
    ) -> None:
        if tied_weights and rnn.input_size != rnn.hidden_size:
            raise ValueError(
                "tied_weights needs the embedding to be as wide as the hidden state, got "
                f"{rnn.input_size} and {rnn.hidden_size}; make them equal or untie"
            )
        super().__init__(
            nn.Embedding(vocab_size, rnn.input_size),
            rnn,
            CategoricalEmission(rnn.hidden_size, vocab_size),
            **options,
        )
        check_rate("dropout_words", dropout_words)
        self.dropout_words = dropout_words
        if tied_weights:
            self.emission.weight = self.embedding.weight
        for weight in (self.embedding.weight, self.emission.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.emission.bias)
        self.tied_weights = tied_weights

    def _embedded(self, x: Tensor, dropping: bool) -> Tensor:
        embedded: Tensor = self.embedding(x)
        if not (dropping and self.dropout_words):
            return embedded
        kept = F.dropout(embedded.new_ones(x.shape[1], self.vocab_size), self.dropout_words)
        return embedded * kept.gather(1, x.t()).t().unsqueeze(-1)

    @property
    def vocab_size(self) -> int:
        """K, the number of words."""
        return int(self.embedding.num_embeddings)


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless ``rate`` is a probability below 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {rate}")


def _is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))
