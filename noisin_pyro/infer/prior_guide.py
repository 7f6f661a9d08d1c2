"""PriorGuide: a guide equal to the prior, so that the KL is zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
from pyro.nn import PyroModule
from torch import Tensor

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.parameters import own_store, priors_of

__all__ = ["PriorGuide"]


class PriorGuide(PyroModule):
    """q(z) = p(z): re-issues a model's latent statements and shares its parameters.

    With it the KL of the ELBO is empty, so ``SVI(model, PriorGuide(model), optim,
    Trace_ELBO())`` maximises the NOISIN objective (Equation 1 of the paper's first version, and its
    section "NOISIN as variational inference"). Where noise is a site per sequence the guide only
    draws it and never runs the RNN.

    ``RenyiELBO(alpha=0)`` with it is the importance-weighted bound on whole sequences. Over windows
    whose first state is a carried draw of the prior its values do not add up to a bound, because
    the draw does not depend on the observations of earlier windows: they can exceed log p(y).
    :class:`FilteringELBO` carries weighted particles instead. If a noise has no pathwise gradient
    (a :class:`MeanParameterized` Poisson, say), Pyro's gradient of that bound lacks a term, while
    its value is right.

    Priors on γ or on weights keep their prior as their guide too, unless ``rest`` gives them
    another: ``PriorGuide(model, rest=AutoNormal)`` is variational inference over them, with the
    noise's KL still empty. The noise is then drawn given what ``rest`` drew, so the objective is
    that of Pyro, not :class:`NoisinELBO`.

    Args:
        model: the model; the guide keeps a reference, so its parameters stay the model's own.
        rest: from a model to a guide, such as ``pyro.infer.autoguide.AutoNormal``, for the priors
            on γ and on weights. It must return the values that it drew, as autoguides do.

    Raises:
        TypeError: if ``model`` is no :class:`SequenceModel`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model = LanguageModel(10, rnn)
        >>> tokens = torch.randint(10, (8, 2))
        >>> loss = Trace_ELBO()(model, PriorGuide(model))(tokens[:-1], tokens[1:])
        >>> loss.requires_grad
        True
    """

    def __init__(
        self, model: SequenceModel, rest: Callable[[Any], Callable[..., Any]] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, SequenceModel):
            raise TypeError(
                f"PriorGuide needs a SequenceModel, got {type(model).__name__}; the guide of "
                "another model is a function that calls rnn.draw_noise"
            )
        self._model = (model,)  # in a tuple, so that it is not registered as a submodule
        self.rest: Callable[..., Any] | None = (
            None if rest is None else rest(poutine.block(model, expose_fn=self._is_random))
        )

    @property
    def model(self) -> SequenceModel:
        """The model whose prior this guide is."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Issues the latent sites; takes the model's arguments."""
        if self.rest is None:
            self.model.latents(*args, **kwargs)
            return
        values = self.rest(*args, **kwargs)
        with poutine.block(hide=list(values)), poutine.condition(data=values):
            self.model.latents(*args, **kwargs)

    def median(self) -> dict[str, Tensor]:
        """The medians of the sites that ``rest`` guides, by name.

        In contrast to ``guide.rest.median()`` this does not read Pyro's global param store, which
        may contain the parameters of an earlier guide under the same names. The medians of weights
        load into a model without priors (:func:`weight_priors`).

        Raises:
            ValueError: if there is no ``rest``, or one that knows no medians.
        """
        find = getattr(self.rest, "median", None)
        if find is None:
            raise ValueError(
                f"PriorGuide.median is that of rest=, such as AutoNormal, got rest={self.rest!r}"
            )
        with own_store():
            medians: dict[str, Tensor] = find()
        return medians

    def _is_random(self, site: Any) -> bool:
        """Whether a site is a prior on γ or on a weight, of the model or of a part of it."""
        return any(
            site["name"] == part._pyro_get_fullname(name) for part, name in priors_of(self.model)
        )
