"""The spread γ of a layer: fixed, learned by empirical Bayes, or with a prior.

:meth:`Spread.attach` makes γ an attribute of a module, and :meth:`Spread.read` returns its value in
a shape that broadcasts with (\\*S, T, B, H).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeGuard

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

from noisin_pyro.noise.moments import bounds

__all__ = [
    "ComputedPrior",
    "Fixed",
    "Learned",
    "Prior",
    "Spread",
    "SpreadLike",
    "as_spread",
    "per_layer",
    "spread_parameters",
]


class Spread:
    """A kind of γ: a constant, a parameter, or a random variable."""

    per_unit: bool
    """True if each unit has its γ, with shape (H,); False if the layer has one, with shape ()."""

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        """Makes γ an attribute of a module.

        Args:
            module: the module.
            name: the name of the attribute, and of its parameter or sample site.
            units: H.
            like: a tensor with the dtype and device of γ.

        Raises:
            ValueError: if γ is not positive and finite, or does not have shape () or (H,).
        """
        raise NotImplementedError

    def read(self, module: PyroModule, name: str, like: Tensor) -> Tensor:
        """γ with the dtype and device of ``like``, in a shape that broadcasts with (\\*S, T, B, H).

        A prior drawn inside the plates of particles has shape (\\*S, 1, 1), to which this adds a
        last dimension, or (\\*S, 1, 1, H) if it is per unit.
        """
        value = getattr(module, name)
        if not isinstance(value, Tensor):
            return like.new_full((), value)
        value = value.to(like)  # a prior has the dtype and device of its distribution
        return value if value.dim() == 0 or self._is_per_unit(module) else value.unsqueeze(-1)

    def _is_per_unit(self, module: PyroModule) -> bool:
        return self.per_unit

    def reset(self, module: PyroModule, name: str) -> None:
        """Sets a learned γ, or one in a buffer, to its initial value in place."""

    def describe(self, module: PyroModule, name: str) -> str:
        """A short text about γ for the module's ``repr``."""
        value = getattr(module, name)
        return f"{value.mean():.4g}" if isinstance(value, Tensor) else f"{value:g}"


class Fixed(Spread):
    """A constant γ, or an ``nn.Parameter`` that the user trains.

    A number becomes a Python float, which ``module.half()`` cannot round; a tensor becomes a buffer
    of the module, and an ``nn.Parameter`` its parameter. In half precision a γ below 6e-8 counts as
    0, which is no noise.

    Args:
        value: a number, or a floating-point tensor with shape () or (H,).

    Raises:
        ValueError: if γ is not positive and finite, is a tensor of another shape or dtype, or
            requires a gradient without being an ``nn.Parameter``.
    """

    value: float | Tensor

    def __init__(self, value: float | Tensor) -> None:
        if isinstance(value, Tensor) and (value.dim() > 1 or not value.is_floating_point()):
            raise ValueError(
                "a tensor of spreads must be floating-point with shape () or (hidden_size,), got "
                f"{value.dtype} with shape {tuple(value.shape)}"
            )
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if value.requires_grad:
                raise ValueError(
                    f"a spread that requires a gradient must be an nn.Parameter, got {_text(value)}"
                    ", whose gradient would be lost; give nn.Parameter(...), Learned(...) or "
                    ".detach() it"
                )
            value = value.clone()  # the caller's may change before `reset` reads it
        self.value = value
        self.per_unit = isinstance(value, Tensor) and value.dim() == 1
        self._check(torch.float64)

    def __repr__(self) -> str:
        return f"Fixed({_text(self.value)})"

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        if self.per_unit and len(self.value) != units:  # type: ignore[arg-type]
            raise ValueError(
                f"a spread per unit must have shape ({units},), one for each of the layer's units, "
                f"got {tuple(self.value.shape)}"  # type: ignore[union-attr]
            )
        self._check(like.dtype)
        value: Any = self.value
        if not isinstance(value, Tensor):
            value = float(value)
        elif not isinstance(value, nn.Parameter):
            value = value.detach().to(_device(like), like.dtype, copy=True)
        _hold(module, name, value)

    def _check(self, dtype: torch.dtype) -> None:
        """Raises ValueError unless γ is positive and finite after rounding to a dtype."""
        # The default device may be meta, whose tensors have no values.
        device = self.value.device if isinstance(self.value, Tensor) else "cpu"
        rounded = torch.as_tensor(self.value, dtype=dtype, device=device)
        if not bool((rounded.isfinite() & (rounded > 0)).all()):
            raise ValueError(
                f"spread must be positive and finite, got {_text(self.value)}; "
                "use noise=None for a deterministic RNN"
            )

    def reset(self, module: PyroModule, name: str) -> None:
        buffer = module._buffers.get(name)
        if buffer is not None:
            buffer.copy_(torch.as_tensor(self.value))


@dataclass(frozen=True)
class Learned(Spread):
    """A spread learned with the weights: γ = lower + exp(raw), a constrained ``pyro.param``.

    Training drives γ to ``lower``, so keep a floor or stop on held-out data (§3, "Learning
    procedure", of https://arxiv.org/abs/1805.01500v1). For one layer with ``noise_to="output"`` and
    an emission that is log-concave in z, Jensen's inequality shows that the objective is largest at
    γ = 0 for any weights. In other models this is not guaranteed, but it is what happens in
    practice.

    Under Pyro's own objectives (``SVI``, ``Trace_ELBO()(model, guide)``) γ is in the global param
    store under its name, as every Pyro parameter is. A second model with the same name would use
    that γ, so clear the store between models. A store loaded from a file keeps the floor of the γ
    in it, whatever ``lower`` is here, so load weights by state dict. :class:`NoisinELBO` as a
    module and plain PyTorch loops do not use the store.

    Weight decay acts on γ as on weights, unless :func:`spread_parameters` get their own group. The
    state dict of a noisy RNN contains ``raw`` and ``lower``. Loaded under another ``lower`` γ keeps
    its value; it is an error if that is not above the new ``lower``.

    Args:
        init: the initial value.
        lower: the floor of γ; 0 requires only γ > 0 and warns.
        per: ``"layer"`` learns one γ for all units of a layer, as in the paper; ``"unit"`` learns
            one for each unit.

    Raises:
        TypeError: if ``init`` or ``lower`` is no number.
        ValueError: if ``lower`` is negative, ``init`` does not exceed it, or ``per`` is unknown.

    Warns:
        UserWarning: if ``lower`` is 0.

    Example:
        >>> Learned(0.5)
        Learned(init=0.5, lower=0.1, per='layer')
    """

    init: float
    lower: float = 0.1
    per: Literal["layer", "unit"] = "layer"

    def __post_init__(self) -> None:
        if self.per not in ("layer", "unit"):
            raise ValueError(f"per must be 'layer' or 'unit', got {self.per!r}")
        for name, value in (("init", self.init), ("lower", self.lower)):
            if not _is_number(value):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if self.init <= self.lower:
            raise ValueError(
                f"the learned spread must start above its floor {self.lower}, got {self.init}; "
                "raise init or lower the floor"
            )
        if self.lower == 0:
            warnings.warn(
                "a learned spread without a floor is driven to zero, which leaves the "
                "deterministic RNN; give lower > 0 or stop on held-out data",
                stacklevel=3,
            )

    @property
    def per_unit(self) -> bool:  # type: ignore[override]
        """Whether each unit learns its own γ."""
        return self.per == "unit"

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        """Makes γ a ``PyroParam``; see :meth:`Spread.attach`.

        Raises:
            ValueError: if ``init`` does not exceed ``lower`` after rounding to the dtype.
        """
        shape = (units,) if self.per_unit else ()
        support = constraints.greater_than(self.lower) if self.lower else constraints.positive
        value = torch.full(shape, float(self.init), dtype=like.dtype, device=_device(like))
        if not support.check(value).all():
            raise ValueError(
                f"the learned spread must start above its floor {self.lower}, got "
                f"{self.init}, which is no larger in {like.dtype}; raise init or lower the floor"
            )
        _hold(module, name, PyroParam(value, support, event_dim=len(shape)))

    def reset(self, module: PyroModule, name: str) -> None:
        constraint, _ = module._pyro_params[name]
        raw = module._parameters[f"{name}_unconstrained"]
        assert raw is not None
        start = torch.full(raw.shape, float(self.init), dtype=raw.dtype, device=raw.device)
        with torch.no_grad():
            raw.copy_(transform_to(constraint).inv(start))

    def describe(self, module: PyroModule, name: str) -> str:
        return f"{super().describe(module, name)} (learned)"


class Prior(Spread):
    """A random γ.

    Args:
        distribution: a Pyro distribution over positive numbers, with batch shape () and event
            shape () or (H,).

    Raises:
        ValueError: if its support contains other numbers.
    """

    def __init__(self, distribution: Any) -> None:
        _check_support(distribution)
        self.distribution, self.per_unit = distribution, bool(distribution.event_shape)

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        _check_shape(self.distribution, units)
        _hold(module, name, PyroSample(self.distribution))

    def describe(self, module: PyroModule, name: str) -> str:
        return str(self.distribution)


class ComputedPrior(Spread):
    """A random γ whose prior depends on other random variables or parameters of the module.

    Args:
        function: from the module to a distribution as in :class:`Prior`, whose batch shape is that
            of the plates that it is drawn in.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def attach(self, module: PyroModule, name: str, units: int, like: Tensor) -> None:
        _hold(module, name, PyroSample(_Checked(self.function, units)))

    def _is_per_unit(self, module: PyroModule) -> bool:
        return bool(self.function(module).event_shape)

    def describe(self, module: PyroModule, name: str) -> str:
        return "a prior computed by a function"


@dataclass(frozen=True)
class _Checked:
    """The function of a :class:`ComputedPrior`, with checks of what it returns."""

    function: Callable[[Any], Any]
    units: int

    def __call__(self, module: Any) -> Any:
        prior = self.function(module)
        if not isinstance(prior, TorchDistributionMixin):
            raise TypeError(
                "the function of a prior on the spread must return a distribution of "
                f"pyro.distributions, got {type(prior).__name__}"
            )
        _check_support(prior)
        _check_shape(prior, self.units, _entered())
        return prior


def _check_support(prior: Any) -> None:
    """Raises ValueError unless a prior on γ is over positive numbers."""
    support = prior.support
    low, _ = bounds(support)
    if low < 0 or (low == 0 and support.is_discrete):
        raise ValueError(
            f"a prior on the spread must be over positive numbers, got {prior} with "
            f"support {support}; use for example dist.LogNormal or dist.Gamma"
        )


def _check_shape(prior: Any, units: int, plates: tuple[int, int] = (0, 0)) -> None:
    """Checks the shape of a prior on γ.

    Args:
        prior: the prior.
        units: H.
        plates: the sizes of the plates that it is drawn in at dim −2 and −1, 0 where there is none.
            Particles, whose dimensions are further left, are not checked.

    Raises:
        ValueError: unless it has event shape () or (H,), and the batch shape of the plates.
    """
    shape = tuple(prior.batch_shape)
    batched = all(size in (1, plate) for size, plate in zip(shape[::-1], plates[::-1]))
    if not batched or tuple(prior.event_shape) not in ((), (units,)):
        raise ValueError(
            f"a prior on the spread must have batch shape () and event shape () or ({units},), "
            f"got {shape} and {tuple(prior.event_shape)}; "
            "use .expand([hidden_size]).to_event(1) for one spread per unit"
        )


def _entered() -> tuple[int, int]:
    """The sizes of the plates that have been entered at dim −2 and −1, 0 where there is none."""
    entered = {m.dim: m for m in _PYRO_STACK if isinstance(m, IndepMessenger)}
    plates: list[Any] = [entered.get(-2), entered.get(-1)]
    first, last = (0 if m is None else getattr(m, "subsample_size", m.size) for m in plates)
    return first, last


SpreadLike = float | Tensor | Learned | Distribution | PyroSample
"""The types of a layer's ``spread=``."""


def as_spread(given: SpreadLike | Spread) -> Spread:
    """Converts the value of ``spread=`` for a layer to a :class:`Spread`.

    Args:
        given: a number, a tensor or ``nn.Parameter`` with shape () or (H,), a :class:`Learned`, or
            a Pyro distribution (also as ``PyroSample``) over positive numbers, with batch shape ()
            and event shape () or (H,), or a ``PyroSample`` of a function from the module to one.

    Raises:
        ValueError: as :class:`Fixed` or :class:`Prior`.
        TypeError: if ``given`` has another type.

    Example:
        >>> as_spread(0.5), as_spread(Learned(0.5))
        (Fixed(0.5), Learned(init=0.5, lower=0.1, per='layer'))
    """
    if isinstance(given, PyroSample):
        given = given.prior if isinstance(given.prior, Distribution) else ComputedPrior(given.prior)
    if isinstance(given, Spread):
        return given
    if isinstance(given, TorchDistributionMixin):
        return Prior(given)
    if isinstance(given, Tensor) or _is_number(given):
        return Fixed(given)
    raise TypeError(
        "spread must be a number, a tensor, Learned(...) or a distribution from "
        f"pyro.distributions, got {given!r}"
    )


def spread_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The trainable spreads of a module and its submodules, for a parameter group without decay.

    Args:
        module: any module.

    Returns:
        An iterator over the parameters, without repetition if several layers share one.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, NoisyGRU
        >>> gru = NoisyGRU(3, 5, noise=Additive(dist.Normal(0.0, 1.0)), spread=Learned(0.3))
        >>> spreads = set(spread_parameters(gru))
        >>> weights = [p for p in gru.parameters() if p not in spreads]
        >>> optimizer = torch.optim.AdamW(
        ...     [{"params": weights}, {"params": list(spreads), "weight_decay": 0.0}]
        ... )
        >>> len(weights), len(spreads)
        (4, 1)
    """
    found = (
        part._parameters.get(name + ending)
        for part in module.modules()
        for name in getattr(part, "_spreads", ())
        for ending in ("", "_unconstrained")
    )
    return iter(dict.fromkeys(gamma for gamma in found if gamma is not None))


def per_layer(given: Any, layers: int, what: str) -> list[Any]:
    """A list with one value for each layer, from one value for all or a sequence.

    Args:
        given: the value, or a sequence of values.
        layers: the number of layers.
        what: the name of the argument, for the error.

    Raises:
        ValueError: if a sequence's length is not the number of layers.

    Example:
        >>> per_layer(0.5, 2, "spread"), per_layer([0.5, 0.3], 2, "spread")
        ([0.5, 0.5], [0.5, 0.3])
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * layers
    if len(given) != layers:
        raise ValueError(
            f"{what} needs one value or one for each of the {layers} layers, got {len(given)}"
        )
    return list(given)


def _hold(module: PyroModule, name: str, value: Any) -> None:
    """Makes a value an attribute of a module, replacing any previous attribute of that name."""
    with suppress(AttributeError):
        delattr(module, name)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        PyroModule.__setattr__(module, name, value)  # NoisyModule.__setattr__ would call attach


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: float | Tensor) -> str:
    return str(value.tolist()) if isinstance(value, Tensor) else str(value)


def _device(like: Tensor) -> torch.device:
    return torch.device("cpu") if like.is_meta else like.device
