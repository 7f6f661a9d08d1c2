"""Gaussian priors on the weights of a model, with a fixed or learned scale (empirical Bayes)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_median
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.spread.conversion import as_spread
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.saved import floor_entry, move_to_floor

__all__ = ["weight_priors"]

_SCALE = "_scale"  # ends the name of a weight's η


def weight_priors(
    module: PyroModule, scale: float | Learned = 1.0, *, names: Iterable[str] | None = None
) -> Callable[[Any], Tensor]:
    """Puts N(0, η²) priors on a model's weights: the paper's second connection, empirical Bayes.

    Each weight W becomes a ``PyroSample`` under its name. Its scale η is another attribute of the
    same module, ``<weight>_scale``: a buffer if η is fixed, and a ``pyro.param`` if it is
    :class:`Learned`, which Pyro's objectives train together with the guide.

    The guide decides the inference over W. In both cases here the noise has its prior as its guide:

    - ``PriorGuide(model, rest=AutoDelta)`` gives a point estimate. Its objective is exactly that of
      NOISIN plus the penalty −log N(W; 0, η²). For wide priors the gradient of the penalty
      vanishes, which leaves NOISIN.
    - ``PriorGuide(model, rest=AutoNormal)`` gives variational inference over W. The objective
      contains the KL divergence of W, while that of the noise is 0. A learned η goes to the root
      mean square of W under the guide.

    :func:`evaluate` draws from the priors. To evaluate the median of the guide, load it into a
    model without priors: ``missing, _ = fresh.load_state_dict({**model.state_dict(),
    **guide.median()}, strict=False)``. Check that ``missing`` is empty: if ``model`` has a name,
    remove it from the names of ``guide.median()``.

    Do not learn η with a point estimate: N(W; 0, η²) has no maximum over η and W, so both would
    shrink until η reaches its floor.

    The objective is ``Trace_ELBO``, or :class:`AnnealedELBO` for windows of a long text, where one
    prior on W belongs to all windows together.

    Args:
        module: a :class:`SequenceModel`, a noisy RNN, or any ``PyroModule``.
        scale: η of all weights, a positive number, or ``Learned(init, lower)``, which learns one η
            for each weight.
        names: names of parameters as in ``named_parameters``. By default all parameters with two or
            more dimensions, but not the embedding of a :class:`SequenceModel`.

    Returns:
        A function for the ``init_loc_fn`` of Pyro's automatic guides. It initialises each weight
        with its present value, and other sites with their medians. Without it a guide would start
        near 0, where all units are alike.

    Raises:
        TypeError: if ``module`` is no ``PyroModule``, or ``scale`` is neither a number nor
            :class:`Learned`.
        ValueError: if a name is unknown, a weight is shared by two modules (tied weights), there is
            no weight, η is not positive and finite, or ``Learned`` has ``per="unit"``.

    Example:
        >>> from functools import partial
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from noisin_pyro import Additive, LanguageModel, Learned, NoisyRNN, PriorGuide
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> model = LanguageModel(10, rnn)
        >>> start = weight_priors(model, Learned(0.3, lower=0.01))
        >>> guide = PriorGuide(model, rest=partial(AutoNormal, init_loc_fn=start, init_scale=0.01))
        >>> tokens = torch.randint(10, (8, 2))
        >>> loss = Trace_ELBO()(model, guide)(tokens[:-1], tokens[1:])
        >>> sorted(name for name, _ in guide.rest.named_pyro_params() if "locs" in name)
        ['locs.emission.weight', 'locs.rnn.weight_hh_l0', 'locs.rnn.weight_ih_l0']
    """
    if not isinstance(module, PyroModule):
        raise TypeError(
            f"weight_priors needs a PyroModule such as a LanguageModel, got {type(module).__name__}"
        )
    if isinstance(scale, Learned):
        if scale.per_unit:
            raise ValueError(
                f"weight_priors learns one scale for each weight, got {scale}; use per='layer'"
            )
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a positive number or Learned(...), got {scale!r}")
    elif not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    chosen = _chosen(module, names)
    starts: list[tuple[PyroModule, str, Tensor]] = []
    for path, weight in chosen.items():
        holder, name = _holder(module, path)
        value = weight.detach().clone()
        given = scale if isinstance(scale, Learned) else torch.tensor(scale, dtype=value.dtype)
        as_spread(given).attach(holder, f"{name}{_SCALE}", 0, value)
        _save_floors(holder)
        setattr(holder, name, PyroSample(_Gaussian(f"{name}{_SCALE}", value.shape)))
        starts.append((holder, name, value))

    def start(site: Any) -> Tensor:
        for holder, name, value in starts:
            if site["name"] == holder._pyro_get_fullname(name):
                return value.clone()  # a guide would train this tensor in place
        median: Tensor = init_to_median(site)
        return median

    return start


@dataclass(frozen=True)
class _Gaussian:
    """The prior N(0, η²) of a weight, where η is the module's attribute ``scale``."""

    scale: str
    shape: torch.Size

    def __call__(self, module: Any) -> Any:
        eta = getattr(module, self.scale)
        normal: Any = dist.Normal(torch.zeros_like(eta), eta)
        return normal.expand(self.shape).to_event(len(self.shape))


def _save_floors(holder: PyroModule) -> None:
    """Lets the state dict of a module contain the floor of each learned η, as it does of each γ."""
    if _add_floors not in holder._state_dict_hooks.values():
        holder.register_state_dict_post_hook(_add_floors)
        holder.register_load_state_dict_pre_hook(_use_floors)


def _floors(holder: Any) -> dict[str, float]:
    """The floors of the learned η of a module's weights, by their names."""
    scales = [f"{name}{_SCALE}" for name in holder._pyro_samples]
    learned = {name: holder._pyro_params.get(name) for name in scales}
    return {name: float(one[0].lower_bound) for name, one in learned.items() if one is not None}


def _add_floors(holder: Any, state_dict: Any, prefix: str, metadata: Any) -> None:
    for name, floor in _floors(holder).items():
        state_dict.update(floor_entry(prefix + name, floor))


def _use_floors(
    holder: Any,
    state_dict: Any,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    for name, floor in _floors(holder).items():
        move_to_floor(state_dict, prefix + name, floor, errors)


def _chosen(module: PyroModule, names: Iterable[str] | None) -> dict[str, Tensor]:
    """The weights that get a prior, by their paths.

    Raises:
        ValueError: if a name is unknown, a weight is shared, or there is none.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    if names is None:
        left_out = ("embedding.",) if isinstance(module, SequenceModel) else ()
        paths = [
            path
            for path, weight in known.items()
            if weight.dim() > 1 and not path.startswith(left_out)
        ]
    else:
        paths = [names] if isinstance(names, str) else list(names)
    unknown = [path for path in paths if path not in known]
    if unknown or not paths:
        raise ValueError(
            f"weight_priors found no weight {', '.join(unknown) or 'at all'} in "
            f"{type(module).__name__}; its parameters are {', '.join(known) or 'none'}"
        )
    for path in paths:
        shared = [other for other, weight in known.items() if weight is known[path]]
        if len(shared) > 1:
            raise ValueError(
                f"weight_priors would untie {' and '.join(shared)}, which are one parameter; build "
                "the model with tied_weights=False, or leave them out of names="
            )
    return {path: known[path] for path in paths}


def _holder(module: Any, path: str) -> tuple[Any, str]:
    """The submodule of a weight, converted to a ``PyroModule``, and the weight's name in it."""
    *parts, name = path.split(".")
    for part in parts:
        child: nn.Module = getattr(module, part)
        to_pyro_module_(child, recurse=False)
        setattr(module, part, child)
        module = child
    return module, name
