"""AnnealedELBO: ``Trace_ELBO`` with a weight on the KL term."""

from __future__ import annotations

import math
from typing import Any

from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from noisin_pyro.infer.stateful import StatefulObjective
from noisin_pyro.parameters import own_store

__all__ = ["AnnealedELBO", "AnnealedObjective"]


class AnnealedELBO(Trace_ELBO):
    """E_q [log p(y | z)] − β KL(q(z) ‖ p(z)): ``Trace_ELBO`` with a weight β on the KL.

    β may be set between steps (KL annealing, Bowman et al. 2016). At β = 1 it is ``Trace_ELBO``,
    at β = 0 any guide is scored by the likelihood term alone; with a :class:`PriorGuide` the KL
    is empty and every β gives the NOISIN objective.

    As a module, ``AnnealedELBO()(model, guide)``, it trains a long text by truncated
    backpropagation with any guide: :meth:`StatefulObjective.with_state` starts a window at the
    state in which the one before ended, a draw of the guide. The windows' losses at fixed
    parameters add up to the loss of the whole text, under the guide that in each window reads no
    further than to the window's end. So they bound the whole text's log p(y), and longer windows
    let a :class:`SmoothingGuide` read further ahead.

    A KL of weights or γ, as under ``PriorGuide(model, rest=AutoNormal)``, is one term for the whole
    text, but the loss of every window contains it. With N windows β = 1/N counts it once; the KL of
    the noise is zero there.

    Args:
        kl_weight: β, at least 0.
        **options: those of ``pyro.infer.Trace_ELBO``.

    Raises:
        ValueError: if β is negative or not finite.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN, SmoothingGuide, detach_state
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model = LanguageModel(10, rnn)
        >>> elbo = AnnealedELBO(0.0)
        >>> objective = elbo(model, SmoothingGuide(model, hidden_size=8))
        >>> tokens, state = torch.randint(10, (13, 2)), None
        >>> for window in (slice(0, 6), slice(6, 12)):
        ...     loss, state = objective.with_state(tokens[window], tokens[1:][window], state)
        ...     loss.backward()
        ...     state = detach_state(state)
        ...     elbo.kl_weight = 1.0
    """

    def __init__(self, kl_weight: float = 1.0, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.kl_weight = kl_weight

    @property
    def kl_weight(self) -> float:
        """β."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"kl_weight must be at least 0 and finite, got {value}; 1 is the ELBO")
        self._kl_weight = value

    def __call__(self, model: nn.Module, guide: nn.Module) -> AnnealedObjective:
        return AnnealedObjective(model, guide, self)

    def loss_and_state(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """The loss and the model's final state, for truncated backpropagation through time.

        Returns:
            The loss with shape (), and the state as the model returns it. With S > 1 vectorised
            particles each part has a leading dimension S, and may be carried so; with S > 1 in
            turn it is the state of the last particle.

        Raises:
            TypeError: if the model does not return a pair, as :class:`SequenceModel` does.
        """
        states: list[Any] = []

        def remembered(*args: Any, **kwargs: Any) -> Any:
            result = model(*args, **kwargs)
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    "loss_and_state needs a model that returns (y, state), as SequenceModel does, "
                    f"got one that returns {type(result).__name__}"
                )
            states.append(result[1])
            return result

        loss: Tensor = self.differentiable_loss(  # type: ignore[no-untyped-call]
            remembered, guide, *args, **kwargs
        )
        return loss, states[-1]

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        weighted = _Weighted(self.kl_weight)
        return super()._get_trace(  # type: ignore[no-untyped-call]
            weighted(model), weighted(guide), args, kwargs
        )


class AnnealedObjective(StatefulObjective):
    """An :class:`AnnealedELBO` with its model and guide, as an ``nn.Module``.

    It leaves Pyro's global param store alone, as :class:`NoisinObjective` does. So a guide's
    parameters must be its attributes, as those of the guides here and of Pyro's automatic ones
    are; a guide with ``pyro.param`` statements of its own is for ``SVI``.
    """

    elbo: AnnealedELBO

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss with shape (); takes the model's arguments. The model may return anything."""
        with own_store():
            loss: Tensor = self.elbo.differentiable_loss(  # type: ignore[no-untyped-call]
                self.model, self.guide, *args, **kwargs
            )
        return loss


class _Weighted(Messenger):
    """Scales the log-probability of latent sites; ``poutine.scale`` would scale all."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self._weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self._weight
