"""SmoothingGuide: a learned guide that reads the observations and starts as the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from noisin_pyro.infer.state_head import CorrectedSteps, StateHead
from noisin_pyro.lengths import Lengths, checked_lengths, length_mask, reverse
from noisin_pyro.models.drawn import Drawn
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.emissions import CategoricalEmission
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.location_scale import LocationScale
from noisin_pyro.parameters import apart, in_context
from noisin_pyro.sites import Call

__all__ = ["SmoothingGuide"]


class SmoothingGuide(PyroModule):
    """A learned guide that reads the observations and starts as the prior.

    A GRU reads inputs and observations backwards in time, r_t = GRU(r_{t+1}, [x_t ; y_t]), and
    corrects the noise of every step by an affine function A r_t + a of its state.

    By default that is q(ε_t | x_{t:T}, y_{t:T}),

        (m_t, log s_t) = A r_t + a,    ε_t = m_t + s_t ε,

    so that z_t, which the prior draws around h_t(z_{t-1}) with standard deviation γ, is drawn
    around h_t + γ m_t with γ s_t (multiplicative noise: h_t (1 + γ m_t) with ``γ s_t |h_t|``).
    The guide never runs the RNN. Given the observations, the ε_t of different steps and units are
    independent: the guide is mean-field in ε. The z_t are not independent, since each grows from
    the one before, but m_t and s_t do not read z_{t-1}. So even the best of these guides misses
    the correlations over steps of the exact posterior of ε. On a linear Gaussian model, where that
    posterior is Gaussian with precision Λ, the bound stays below log p(y) by at least
    ½ (Σ_i log Λ_ii − log det Λ).

    With ``reads_state=True`` it is q(z_t | z_{t-1}, x_{t:T}, y_{t:T}), as the structured guide of
    Krishnan et al. (2017, https://arxiv.org/abs/1609.09869) is. It runs the RNN, and reads z_{t-1}
    through h_t:

        (m_t, log s_t, g_t, c_t) = A r_t + a
        z_t = h_t + γ (m_t + U (g_t ∘ W h_t) + C_t ε),    C_t = diag(s_t) + below(U diag(c_t) W)

    where "below" keeps what is below the diagonal, and γ h_t, with its sign, stands for γ with
    multiplicative noise; U and W have rank K. The exact posterior of a linear Gaussian model is of
    this form: a location affine in h_t, and a covariance of its own at each step. The RNN must be
    built with ``sites="timestep"``.

    A and a start at 0. There the guide *is* :class:`PriorGuide` and ``Trace_ELBO`` the NOISIN
    objective, and training departs from both continuously. Priors on γ or on weights, and input
    noise, keep their prior as their guide.

    Args:
        model: the model; its parameters stay its own, and the guide reads its embedding without
            training it.
        hidden_size: units of the GRU.
        features: a function from y with shape (T, B, \\*) to the GRU's input, with shape (T, B, F).
            By default a language model's embedding, and y itself otherwise.
        feature_size: F; needed with ``features``, or if the emission does not know its size. A
            :class:`CategoricalEmission` outside a language model needs both.
        reads_state: let the correction read z_{t-1} and correlate the units.
        rank: K, with ``reads_state``; by default H², but at most 8.

    Raises:
        TypeError: if ``model`` is no :class:`SequenceModel`.
        ValueError: if its RNN has other sites than the guide needs, no noise, or a noise that does
            not range over the whole real line, so that a correction would leave its support; if F
            is not known; or if ``rank`` is below 1 or given without ``reads_state``.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> noise = Additive(dist.Normal(0.0, 1.0))
        >>> rnn = NoisyRNN(4, 6, noise=noise, spread=0.3, sites="timestep")
        >>> model = LanguageModel(10, rnn)
        >>> guide = SmoothingGuide(model, hidden_size=8, reads_state=True)
        >>> pyro.clear_param_store()  # of models of the same names
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> tokens = torch.randint(10, (8, 2))
        >>> loss = svi.step(tokens[:-1], tokens[1:])
    """

    def __init__(
        self,
        model: SequenceModel,
        hidden_size: int = 64,
        *,
        features: Callable[[Tensor], Tensor] | None = None,
        feature_size: int | None = None,
        reads_state: bool = False,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, SequenceModel):
            raise TypeError(f"SmoothingGuide needs a SequenceModel, got {type(model).__name__}")
        rnn = model.rnn
        self._layers = _corrected_layers(rnn, reads_state)
        if rank is not None and not (reads_state and rank >= 1):
            raise ValueError(
                f"rank must be at least 1, and goes with reads_state=True, got rank={rank} and "
                f"reads_state={reads_state}"
            )
        self._model = (model,)  # in a tuple, so that it is not registered as a submodule
        self._features = features
        like: Tensor = rnn.like
        size = _feature_size(model) if features is None and feature_size is None else feature_size
        if size is None:
            raise ValueError(
                "SmoothingGuide cannot tell the features' size; give feature_size=, and features= "
                "where y itself cannot be read, as classes cannot"
            )
        to: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.reads_state = reads_state
        self.reader = nn.GRU(rnn.input_size + size, hidden_size, **to)
        width, units = 2 * rnn.hidden_size, rnn.hidden_size
        if reads_state:
            rank = min(units * units, 8) if rank is None else rank
            self.heads = nn.ModuleList(StateHead(units, rank, **to) for _ in self._layers)
            width += 2 * rank
        self.correction = nn.Linear(hidden_size, len(self._layers) * width, **to)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @property
    def model(self) -> SequenceModel:
        """The model that this guide is for."""
        return self._model[0]

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: Any = None,
        lengths: Lengths | None = None,
        *,
        sample: bool | None = None,
    ) -> None:
        """Issues the latent sites; takes the model's arguments.

        Raises:
            ValueError: if ``y`` is missing, for it is what the correction is read from.
        """
        if y is None:
            raise ValueError("SmoothingGuide reads the observations; give y, or use PriorGuide")
        # In one context, so that a prior on the embedding is drawn here and not again in latents.
        with (
            self.model._pyro_context if am_i_wrapped() else apart(self.model),
            self._replaced(x, y, lengths),
        ):
            self.model.latents(x, y, state, lengths, sample=sample)

    def _replaced(self, x: Tensor, y: Tensor, lengths: Lengths | None) -> Messenger:
        """The handler that gives the noise sites of the model this guide's distributions."""
        if not self.reads_state:
            return _Replaced(self.model.rnn, self._distributions(x, y, lengths))
        corrections = self._corrections(x, y, lengths)  # (L, T, B, 2H + 2K)
        steps = {layer: part.split(1) for layer, part in zip(self._layers, corrections)}
        heads = dict(zip(self._layers, self.heads))
        return CorrectedSteps(self.model.rnn, heads, steps)

    @in_context
    def propose(
        self, x: Tensor, y: Tensor, lengths: Lengths | None = None, *, particles: int
    ) -> tuple[Drawn, Tensor]:
        """Draws noise for K copies of each sequence, as a particle filter's proposal.

        Args:
            x: inputs, with shape (T, B) or (T, B, \\*).
            y: observations, with shape (T, B) and the emission's event shape.
            lengths: each sequence's number of steps, with shape (B,).
            particles: K.

        Returns:
            The noise of K·B sequences, copy k of sequence b in column k·B + b, without sample
            sites; and log p(ε) − log q(ε) for each step, with shape (T, K·B). That of a tied noise
            stands at the first step.

        Raises:
            ValueError: if the guide reads the state, which is not known before the RNN runs.
        """
        if self.reads_state:
            raise ValueError(
                "a particle filter draws a guide's noise before the RNN runs, so it cannot take a "
                "SmoothingGuide with reads_state=True; use one without, or RenyiELBO(alpha=0) on "
                "whole sequences"
            )
        model, (steps, batch) = self.model, x.shape[:2]
        on_input = model._draw_input_noise(
            Call(model, steps, particles * batch, noisy=True, dropping=False)
        )
        layers: list[Tensor | None] = [None] * len(model.rnn.noise)
        log_ratios = None
        for layer, q in self._distributions(x, y, lengths).items():
            noise = model.rnn.noise[layer]
            assert isinstance(noise, AffineNoise)
            prior: Any = noise.standardized(model.rnn.like)
            epsilon = q.rsample((particles,))  # (K, T, B, H)
            log_ratio = prior.log_prob(epsilon).sum(-1) - q.log_prob(epsilon)
            layers[layer] = epsilon.movedim(0, 1).flatten(1, 2)
            log_ratio = log_ratio.movedim(0, 1).flatten(1, 2)
            log_ratios = log_ratio if log_ratios is None else log_ratios + log_ratio
        assert log_ratios is not None
        missing = steps - len(log_ratios)  # steps that share the ε of the first
        return Drawn(on_input, layers), F.pad(log_ratios, (0, 0, 0, missing))

    def _distributions(self, x: Tensor, y: Tensor, lengths: Lengths | None) -> dict[int, Any]:
        """q of each layer's noise, with batch shape (T, B)."""
        distributions: dict[int, Any] = {}
        for layer, correction in zip(self._layers, self._corrections(x, y, lengths)):
            noise, like = self.model.rnn.noise[layer], self.model.rnn.like
            assert isinstance(noise, AffineNoise)
            shift, log_scale = correction.chunk(2, -1)
            corrected: Any = LocationScale(noise.standardized(like), shift, log_scale.exp())
            distributions[layer] = corrected.to_event(1)
        return distributions

    def _corrections(self, x: Tensor, y: Tensor, lengths: Lengths | None) -> Tensor:
        """A r_t + a, the correction of each noisy layer, with shape (L, T or 1, B, \\*)."""
        model = self.model
        mask = None
        if lengths is not None:
            lengths = checked_lengths(lengths, *x.shape[:2]).to(x.device)
            mask = length_mask(lengths, len(x))
            y = y.masked_fill(~mask.reshape(mask.shape + (1,) * (y.dim() - 2)), 0)  # may be NaN
        embed: Callable[[Tensor], Tensor] = model.embedding
        if self._features is not None:
            seen = self._features(y)
        else:
            seen = embed(y).detach() if isinstance(model, LanguageModel) else y
        read = torch.cat([embed(x).detach(), seen], -1)
        if mask is not None:
            read = read.masked_fill(~mask.unsqueeze(-1), 0)
        r = reverse(self.reader(reverse(read, lengths))[0], lengths)  # (T, B, R)
        if model.rnn.tied:  # the GRU has read all at the first step
            r = r[:1]
        corrections: Tensor = self.correction(r).unflatten(-1, (len(self._layers), -1))
        if mask is not None and len(r) > 1:  # the padding keeps the prior
            corrections = corrections.masked_fill(~mask[..., None, None], 0)
        return corrections.movedim(-2, 0)


class _Replaced(Messenger):
    """Replaces the distributions of an RNN's noise sites."""

    def __init__(self, rnn: NoisyRecurrence, distributions: Mapping[int, Any]) -> None:
        super().__init__()
        self._rnn, self._distributions = rnn, distributions

    def _pyro_sample(self, msg: Any) -> None:
        for layer, replacement in self._distributions.items():  # known only during a call
            if msg["name"] == self._rnn._pyro_get_fullname(f"noise_{layer}"):
                msg["fn"] = replacement


def _feature_size(model: SequenceModel) -> int | None:
    if isinstance(model, LanguageModel):
        return model.rnn.input_size
    if isinstance(model.emission, CategoricalEmission):
        return None  # y holds classes
    return getattr(model.emission, "out_features", None)


def _corrected_layers(rnn: NoisyRecurrence, reads_state: bool) -> list[int]:
    """The noisy layers of an RNN.

    Raises:
        ValueError: if there is none, or if the guide cannot correct their noise.
    """
    layers = [layer for layer, noise in enumerate(rnn.noise) if noise is not None]
    if not layers:
        raise ValueError("SmoothingGuide has nothing to correct, got a model with noise=None")
    if not all(noise is None or isinstance(noise, AffineNoise) for noise in rnn.noise):
        raise ValueError(
            "SmoothingGuide corrects Additive or Multiplicative noise, got one whose sample "
            f"sites are per timestep in every mode, {[str(noise) for noise in rnn.noise]}"
        )
    _check_sites(rnn, reads_state)
    for layer in layers:
        noise = rnn.noise[layer]
        assert isinstance(noise, AffineNoise)
        if not noise.standardized(rnn.like).unbounded:
            raise ValueError(
                f"SmoothingGuide needs noise over the whole real line, got {noise}, whose "
                "support a correction would leave; use a Normal, Laplace, Logistic, ..."
            )
    return layers


def _check_sites(rnn: NoisyRecurrence, reads_state: bool) -> None:
    if reads_state and not rnn.samples_timesteps:
        raise ValueError(
            "SmoothingGuide(reads_state=True) reads the state of each step, got an RNN with "
            f"sites={rnn.sites!r}; build it with sites='timestep'"
        )
    if rnn.sites is None:
        raise ValueError(
            "SmoothingGuide corrects sample sites, got an RNN with sites=None, which has none; "
            "build it with sites='sequence'"
        )
    if rnn.samples_timesteps and not reads_state:
        raise ValueError(
            "SmoothingGuide corrects the noise of whole sequences, got an RNN with a sample "
            "site per timestep; use sites='sequence', or reads_state=True"
        )
