"""Checks of the arguments of noisy RNNs; each error is one sentence with value, rule and fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Real
from typing import Any, ParamSpec, get_args

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.distributions import Distribution

from noisin_pyro.cells.base import Cell, State
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.noise.base import Noise, Range

__all__ = [
    "check_dense",
    "check_drawn",
    "check_input",
    "check_noise",
    "check_options",
    "check_sizes",
    "check_spread",
    "check_state",
    "check_state_dtype",
    "check_weights",
    "refuse_tied",
    "spread_with_noise",
    "state_range",
    "state_sizes",
    "zoneout_rates",
]

P = ParamSpec("P")


def spread_with_noise(constructor: Callable[P, None]) -> Callable[P, None]:
    """A constructor that checks its keyword arguments with :func:`check_spread`."""

    @wraps(constructor)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        check_spread(options)
        constructor(*args, **options)

    return checked


def check_spread(options: Mapping[str, Any]) -> None:
    """Checks that a spread comes with a noise, which may be an explicit None.

    Args:
        options: the keyword arguments of a noisy RNN, or of a model of one.

    Raises:
        ValueError: if ``spread`` is given and ``noise`` is not, or ``input_spread`` and
            ``input_noise``.
    """
    for spread, noise in (("spread", "noise"), ("input_spread", "input_noise")):
        if spread in options and noise not in options:
            raise ValueError(
                f"{spread}={options[spread]} needs a noise; give "
                f"{noise}=Multiplicative(dist.Normal(0.0, 1.0)), or {noise}=None to have none"
            )


def check_options(name: str, cell: Cell[Any], proj_size: int, sites: Any, noise_to: Any) -> None:
    """Checks the options that all layers share.

    Args:
        name: the name of the RNN's class, for the error.
        cell: the cell.
        proj_size, sites, noise_to: as in :class:`NoisyLSTM`.

    Raises:
        ValueError: if ``proj_size`` is not 0, ``sites`` or ``noise_to`` is unknown, or ``noise_to``
            is ``"weights"`` and the cell's recurrent weights are not known.
    """
    if proj_size:
        raise ValueError(
            f"proj_size={proj_size} is not supported by {name}, because the noise belongs to the "
            "hidden state and a projected state is no cell's output; use proj_size=0 and a linear "
            "layer after the RNN"
        )
    if sites not in ("sequence", "timestep", None):
        raise ValueError(f"sites must be 'sequence', 'timestep' or None, got {sites!r}")
    if noise_to not in get_args(NoiseTo):
        raise ValueError(
            f"noise_to must be 'both', 'output', 'recurrence' or 'weights', got {noise_to!r}"
        )
    if noise_to == "weights" and not cell.recurrent_weights:
        raise ValueError(
            f"noise_to='weights' is for NoisyRNN, NoisyLSTM and NoisyGRU, got {name}; use "
            "noise_to='recurrence'"
        )


def zoneout_rates(zoneout: float | Sequence[float], parts: int) -> tuple[float, ...]:
    """The zoneout rate of each part of the state.

    Args:
        zoneout: one rate for all parts, or one for each.
        parts: the number of parts.

    Raises:
        ValueError: if a rate is no number in [0, 1), or there are not ``parts`` of them.
    """
    rates = tuple(zoneout) if isinstance(zoneout, Sequence) else (zoneout,) * parts
    if len(rates) != parts or not all(isinstance(r, Real) and 0 <= r < 1 for r in rates):
        each = {1: "", 2: ", or a pair for h and c"}.get(parts, f", or {parts} of them")
        raise ValueError(f"zoneout must be a probability in [0, 1){each}, got {zoneout}")
    return tuple(float(rate) for rate in rates)


def state_sizes(sizes: Any) -> tuple[int, ...]:
    """The widths of the parts of a state, from a user's ``state_sizes``.

    Raises:
        ValueError: unless they are a non-empty sequence of integers above 0.
    """
    each = tuple(sizes) if isinstance(sizes, Sequence) else ()
    if not each or not all(isinstance(size, int) and size > 0 for size in each):
        raise ValueError(
            "state_sizes must be the widths of the state's parts, at least 1 each, such as [20] "
            f"for h alone or [20, 20] for h and c, got {sizes!r}"
        )
    return each


def state_range(interval: Any) -> Range:
    """The interval of h, from a user's ``range``.

    Raises:
        ValueError: unless it is a pair of numbers (low, high) with low < high.
    """
    numbers = isinstance(interval, Sequence) and all(isinstance(end, Real) for end in interval)
    if not numbers or len(interval) != 2 or not interval[0] < interval[1]:
        raise ValueError(
            f"range must be a pair (low, high) with low < high, such as (-1, 1), got {interval!r}"
        )
    return Range(*interval)


def check_noise(noise: Any) -> None:
    """Raises TypeError unless ``noise`` is a :class:`.Noise`."""
    if isinstance(noise, Noise):
        return
    if isinstance(noise, Distribution):
        fix = f"wrap a distribution as Additive({noise!r})"
    elif isinstance(noise, str):
        fix = f"take a family by its name as family({noise!r}, 'additive')"
    else:
        fix = "give, say, Additive(dist.Normal(0.0, 1.0))"
    raise TypeError(
        f"noise must be Additive, Multiplicative, MeanParameterized or None, got {noise!r}; {fix}"
    )


def refuse_tied(noise: Noise, sites: Any) -> None:
    """Raises the ValueError about ``tied=True`` for a noise with a site per timestep."""
    raise ValueError(
        "tied=True draws one ε for the whole sequence, so it needs sites='sequence' and an "
        f"Additive or Multiplicative noise, got sites={sites!r} and {noise!r}"
    )


def check_dense(x: Tensor) -> None:
    """Raises ValueError if an input is a nested or a sparse tensor."""
    if x.is_nested:
        raise ValueError(
            f"the input must be one dense tensor, got a nested one of {len(x.unbind())} sequences; "
            "give torch.nn.utils.rnn.pad_sequence(x.unbind()) and lengths=[len(s) for s in x]"
        )
    if x.layout != torch.strided:
        raise ValueError(f"the input must be dense, got {x.layout}; convert it with .to_dense()")


def check_input(x: Tensor, input_size: int, weight: Tensor) -> None:
    """Checks an input with shape (\\*S, T, B, I) against a weight of the RNN.

    Raises:
        ValueError: if it does not have ``input_size`` features, the weight's dtype (unless autocast
            is on), and at least one step.
    """
    if x.shape[-1] != input_size or not x.is_floating_point():
        raise ValueError(
            f"input must be floating-point with {input_size} features in its last dimension, "
            f"got {x.dtype} with {x.shape[-1]}"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"input must have the dtype of the weights, {weight.dtype}, got {x.dtype}; "
            "convert one with .to()"
        )
    if x.shape[-3] == 0:
        raise ValueError("input must have at least one time step, got 0")


def check_weights(*parts: tuple[Tensor | None, int]) -> None:
    """Raises ValueError if the weight of a pair has other dimensions than the pair's number.

    A bias may have fewer.
    """
    for part, dims in parts:
        if part is not None and dims == 2 and part.dim() < 2:
            raise ValueError(
                f"a weight must be a matrix, got one with shape {tuple(part.shape)}; a prior on it "
                "needs its shape, as dist.Normal(0.0, 1.0).expand([rows, columns]).to_event(2)"
            )
        if part is not None and part.dim() > dims:
            raise ValueError(
                "a prior on a weight or a bias cannot be drawn inside a plate, once for each "
                f"particle or sequence, got one with shape {tuple(part.shape)}; read the weight "
                "before you enter the plate, or use vectorize_particles=False (Predictive: "
                "parallel=False)"
            )


def check_sizes(dropout: float, **sizes: int) -> None:
    """Raises ValueError if a size is below 1, or ``dropout`` lies outside [0, 1]."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie in [0, 1], got {dropout}")


def check_drawn(
    epsilon: Any, wanted: Sequence[bool], shape: Sequence[int], dtype: torch.dtype
) -> None:
    """Checks a user's ``epsilon``.

    Args:
        epsilon: a tensor that broadcasts with ``shape`` or None, for each layer and direction.
        wanted: for each of them, whether it must be a tensor.
        shape: (T or 1, B, H).
        dtype: the dtype of the weights.

    Raises:
        ValueError: if the number of entries, a shape or a dtype differs.
    """

    def fits(part: Any, there: bool) -> bool:
        if not there:
            return part is None
        if not isinstance(part, Tensor) or part.shape[-1:] != shape[-1:] or part.dim() < 3:
            return False
        return all(size in (1, whole) for size, whole in zip(part.shape[-3:], shape))

    if len(epsilon) != len(wanted) or not all(map(fits, epsilon, wanted)):
        got = [tuple(part.shape) if isinstance(part, Tensor) else part for part in epsilon]
        raise ValueError(
            f"epsilon must hold, for each of the {len(wanted)} layers, a tensor with shape "
            f"{tuple(shape)}, or None where there is no noise or a site per timestep, got {got}; "
            "take it from draw_noise"
        )
    other = next((part.dtype for part in epsilon if part is not None and part.dtype != dtype), None)
    if other is not None:
        raise ValueError(
            f"epsilon must have the dtype of the weights, {dtype}, got {other}; convert it with "
            ".to()"
        )


def check_state(name: str, hx: Any, shapes: Sequence[tuple[int, ...]]) -> State:
    """The parts of a user's initial state, after checks.

    Args:
        name: the name of the RNN's class, for the error.
        hx: the state: a tensor, or a tuple of tensors if it has several parts.
        shapes: the expected shape of each part.

    Raises:
        TypeError: if the state is not such a tensor or tuple.
        ValueError: if a part has another shape.
    """
    several = isinstance(hx, (tuple, list))
    parts = tuple(hx) if several else (hx,)
    whole = several == (len(shapes) > 1) and len(parts) == len(shapes)
    if not whole or not all(isinstance(part, Tensor) for part in parts):
        names = {1: "one tensor h", 2: "a pair (h, c)"}
        wanted = names.get(len(shapes), f"a tuple of {len(shapes)} tensors, the first of them h")
        got = type(hx).__name__
        got += f" of {', '.join(type(part).__name__ for part in parts)}" if several else ""
        raise TypeError(f"the state of {name} is {wanted}, got {got}; give None to start at zero")
    for part, shape in zip(parts, shapes):
        dims = len(shape)
        if tuple(part.shape[-dims:]) != shape or (part.dim() > dims and not am_i_wrapped()):
            which = "each part of the state" if len(set(shapes)) == 1 else "this part of the state"
            raise ValueError(f"{which} must have shape {shape}, got {tuple(part.shape)}")
    return parts


def check_state_dtype(state: State, x: Tensor) -> None:
    """Raises ValueError unless the state has the dtype of the input, or autocast is on."""
    for part in state:
        if part.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
            continue
        raise ValueError(
            f"the state must have the dtype of the input, {x.dtype}, got {part.dtype}; "
            "convert one with .to()"
        )
