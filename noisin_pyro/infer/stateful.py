"""Base classes of objectives that return the model's final state beside the loss."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import torch_item
from torch import Tensor

from noisin_pyro.parameters import own_store

__all__ = ["StatefulELBO", "StatefulObjective"]


class StatefulELBO(ELBO):
    """An ELBO whose loss and final state are estimated together, by :meth:`loss_and_state`."""

    def loss_and_state(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """The loss with shape (), ready for ``backward``, and the state after the last step."""
        raise NotImplementedError

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a float, without gradients."""
        with torch.no_grad():
            return float(self.loss_and_state(model, guide, *args, **kwargs)[0])

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor, with shape (), ready for ``backward``."""
        return self.loss_and_state(model, guide, *args, **kwargs)[0]

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a float, after ``backward``; this is what SVI calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(torch_item(loss))


class StatefulObjective(ELBOModule):
    """An objective with ``loss_and_state``, its model and guide: a module for torch optimisers.

    It leaves Pyro's global param store alone, so one thread can train several in turn.
    """

    elbo: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss with shape (); takes the model's arguments."""
        return self.with_state(*args, **kwargs)[0]

    def with_state(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """The loss and the state after the last step; takes the model's arguments.

        ``detach_state`` detaches the state from its graph.
        """
        with own_store():
            found: tuple[Tensor, Any] = self.elbo.loss_and_state(
                self.model, self.guide, *args, **kwargs
            )
        return found
