"""FilteringELBO: the lower bound of log p(y) that a particle filter estimates."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pyro.poutine.runtime import am_i_wrapped
from pyro.util import warn_if_nan
from torch import Tensor, nn

from noisin_pyro.infer.particle_filter import check_filters, filter_window
from noisin_pyro.infer.particles import Particles
from noisin_pyro.infer.prior_guide import PriorGuide
from noisin_pyro.infer.smoothing_guide import SmoothingGuide
from noisin_pyro.infer.stateful import StatefulELBO, StatefulObjective
from noisin_pyro.lengths import Lengths
from noisin_pyro.models.sequence import SequenceModel

__all__ = ["FilteringELBO", "FilteringObjective"]


class FilteringELBO(StatefulELBO):
    """E [Σ_t log Σ_k W_{t-1}^k w_t^k] ≤ log p(y_1:T): a particle filter's expected log-evidence.

    K noisy RNNs run side by side, are weighted by the likelihood of each observation, and are
    resampled where few of them have all the weight
    (:mod:`noisin_pyro.infer.particle_filter`). Of this bound

    - ``num_particles=1`` is :class:`NoisinELBO`, equal to the last digit under the same seed;
    - ``ess_threshold=0`` is the importance-weighted bound of Burda et al. (2016,
      https://arxiv.org/abs/1509.00519), with particles per sequence, as ``RenyiELBO(alpha=0)`` has;
    - otherwise it is the bound of Maddison et al. (2017, https://arxiv.org/abs/1705.09279), Le et
      al. (2018, https://arxiv.org/abs/1705.10306) and Naesseth et al. (2018,
      https://arxiv.org/abs/1705.11140).

    NOISIN ≤ importance-weighted ≤ log p holds always. With resampling the bound is still at most
    log p and, on sequences of some length, usually above the importance-weighted one, but no
    theorem says so.

    :meth:`StatefulObjective.with_state` carries particles and weights from one window to the next.
    The windows' losses then add up to the bound on the whole text, which importance-weighted
    bounds on windows that start at a carried draw of the prior do not.

    **The gradient.** By default it leaves out the derivative of the ancestors' probabilities, which
    varies much and helps little in the three papers' experiments. Then it is biased wherever
    particles are resampled (it is exact for ``ess_threshold=0``), towards what is good at the next
    observations rather than at later ones. ``resampling_gradient=True`` adds the missing
    score-function term and draws ancestors independently. With ``ess_threshold=1``, where every
    step resamples, the gradient of a whole sequence is then unbiased. With a threshold in between
    two terms are missing: the derivative of the decision to resample, and, between windows,
    the effect of the ancestors on later windows.

    A noise must have a pathwise gradient, and the emission no sample statement of its own. Inside
    ``SVI`` scales and masks, as of ``poutine.scale`` and ``poutine.mask``, are not read.

    Args:
        num_particles: K.
        ess_threshold: resample a sequence's particles before a step where fewer than this fraction
            of K are effective.
        resampling_gradient: add the derivative of the ancestors' probabilities.

    Raises:
        ValueError: if K is below 1 or the threshold outside [0, 1].

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN, detach_state
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model = LanguageModel(10, rnn)
        >>> objective = FilteringELBO(num_particles=4)(model, PriorGuide(model))
        >>> x = torch.randint(10, (8, 2))
        >>> loss, particles = objective.with_state(x[:-1], x[1:])
        >>> loss, particles = objective.with_state(x[:-1], x[1:], detach_state(particles))
    """

    def __init__(
        self,
        num_particles: int = 10,
        ess_threshold: float = 0.5,
        *,
        resampling_gradient: bool = False,
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        if not 0 <= ess_threshold <= 1:
            raise ValueError(
                "ess_threshold must lie between 0 (never resample) and 1 (always), got "
                f"{ess_threshold}"
            )
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=num_particles, max_plate_nesting=2, vectorize_particles=True
        )
        self.ess_threshold = ess_threshold
        self.resampling_gradient = resampling_gradient

    def __call__(self, model: nn.Module, guide: nn.Module) -> FilteringObjective:
        self._check(model, guide)
        return FilteringObjective(model, guide, self)

    def loss_and_state(
        self,
        model: SequenceModel,
        guide: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        state: Particles | None = None,
        lengths: Lengths | None = None,
        *,
        sample: bool | None = None,
    ) -> tuple[Tensor, Particles]:
        """The loss and the particles after the last step, for truncated backpropagation.

        Args:
            model, guide: the pair.
            x: inputs, with shape (T, B) or (T, B, \\*).
            y: targets, with shape (T, B) and the emission's event shape.
            state: the particles that this method returned for the window before.
            lengths: each sequence's number of steps, with shape (B,).
            sample: True draws noise, False runs the mean path; by default noise is drawn while
                ``training``.

        Raises:
            TypeError: if the guide is no :class:`PriorGuide` or :class:`SmoothingGuide` of the
                model, or ``state`` is of another kind.
            ValueError: if y is missing, if γ or a weight has a prior, if something is drawn once
                per sequence while particles are resampled, or if the guide reads the state.
        """
        self._check(model, guide)
        if y is None:
            raise ValueError("FilteringELBO needs the observations; call it as (x, y)")
        if not (state is None or isinstance(state, Particles)):
            raise TypeError(
                "FilteringELBO carries particles from window to window, got a state of type "
                f"{type(state).__name__}; give what with_state returned, or None at the start"
            )
        count, batch = self.num_particles, x.shape[1]
        check_filters(model, self.ess_threshold, count > 1 and self.ess_threshold > 0)
        if state is None:
            state = Particles.start(count, batch, model.rnn.like)
        # One context for all steps: inside Pyro each entry would register every parameter.
        with model._pyro_context if am_i_wrapped() else nullcontext():
            drawn = log_ratios = None
            if isinstance(guide, SmoothingGuide) and (model.training if sample is None else sample):
                drawn, log_ratios = guide.propose(x, y, lengths, particles=count)
            found = filter_window(
                model,
                x,
                y,
                state,
                lengths,
                ess_threshold=self.ess_threshold,
                resampling="multinomial" if self.resampling_gradient else "systematic",
                sample=sample,
                drawn=drawn,
                log_ratios=log_ratios,
            )
        loss = -found.log_probs.sum()
        if self.resampling_gradient:
            later = found.log_probs.detach().flip(0).cumsum(0).flip(0)  # from this step on
            surrogate = -(found.resampled * later).sum()
            loss = loss + (surrogate - surrogate.detach())
        warn_if_nan(loss, "loss")
        return loss, found.particles

    @staticmethod
    def _check(model: Any, guide: Any) -> None:
        if not (isinstance(guide, (PriorGuide, SmoothingGuide)) and guide.model is model):
            raise TypeError(
                "FilteringELBO needs a PriorGuide or a SmoothingGuide of the very model it is "
                f"given, got {type(guide).__name__}"
            )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Unused: the particles run as one batch, without a trace of each."""
        raise NotImplementedError


class FilteringObjective(StatefulObjective):
    """A :class:`FilteringELBO` with its model and guide, as an ``nn.Module``.

    It leaves Pyro's global param store alone, as :class:`NoisinObjective` does. The state that
    ``with_state`` hands on are the particles, see :meth:`FilteringELBO.loss_and_state`.
    """

    elbo: FilteringELBO
