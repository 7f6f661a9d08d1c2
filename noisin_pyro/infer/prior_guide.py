"""The guide that empties the KL."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule

from noisin_pyro.models.sequence import SequenceModel

__all__ = ["PriorGuide"]


class PriorGuide(PyroModule):
    """q(z) = p(z): re-issues a model's latent statements and shares its parameters.

    With it the KL of the ELBO is empty, so ``SVI(model, PriorGuide(model), optim,
    Trace_ELBO())`` maximises the NOISIN objective (the paper's Equation 1 and "NOISIN as
    variational inference"). Where noise is a site per sequence the guide only draws it and
    never runs the RNN. ``RenyiELBO(alpha=0)`` with it is the importance-weighted bound on whole
    sequences. Over windows whose first state is a carried draw of the prior its values do not add
    up to a bound, because the draw knows nothing of the windows before: they can exceed
    log p(y). :class:`FilteringELBO` carries weighted particles instead. Where a
    noise has no pathwise gradient (a :class:`MeanParameterized` Poisson, say) Pyro's gradient of
    that bound leaves out a term, its value does not.

    Args:
        model: the model; the guide holds a reference, so its parameters stay the model's own.

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

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        if not isinstance(model, SequenceModel):
            raise TypeError(f"PriorGuide needs a SequenceModel, got {type(model).__name__}")
        self._model = (model,)  # in a tuple, so that it is not registered as a submodule

    @property
    def model(self) -> SequenceModel:
        """The model whose prior this guide is."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Issues the latent sites; takes the model's arguments."""
        self.model.latents(*args, **kwargs)
