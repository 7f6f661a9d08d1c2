"""Forecasts of several steps: each step reads the draw of the step before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from noisin_pyro.infer.contexts import draw_priors, given, has_priors, seeded_by
from noisin_pyro.models.sequence import SequenceModel, check_model
from noisin_pyro.modes import evaluating
from noisin_pyro.nn.forms import map_state

__all__ = ["check_count", "continue_sequences", "forecast"]


def _sample(emitted: Any) -> Tensor:
    return emitted.sample()  # type: ignore[no-any-return]


def forecast(
    model: SequenceModel,
    x: Tensor,
    steps: int,
    *,
    samples: int = 100,
    state: Any = None,
    next_input: Callable[[Tensor], Tensor] | None = None,
    sample: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws continuations of a sequence from the generative process.

    Each of S noisy RNNs reads the inputs, draws the next y, reads it as the next input, and so on.
    Quantiles over the first dimension are intervals:
    ``forecast(...).quantile(torch.tensor([0.05, 0.95]), 0)``. Dropout is off, except that of a tied
    RNN, whose masks count as noise and are drawn at each step. If γ or weights have priors, each of
    the S samples draws its own from these.

    The states at the end of x are drawn from the prior given the inputs, which is their
    distribution where the noise never reaches a later step (see :func:`evaluate`). For states that
    are weighted by the observations, give those of a particle filter as ``state``.

    Args:
        model: a model that reads what it predicts: x is the sequence up to now, and y the value
            that follows each of x. Its training mode is left as it was.
        x: the inputs, with shape (T, B) or (T, B, \\*).
        steps: N, how many steps to draw.
        samples: S.
        state: the carried state before x, each part with shape (L, B, H), or (L, S·B, H) with the
            state of sample s of sequence b in place s·B + b.
        next_input: a function from y of one step, with shape (1, S·B) and the event shape, to the
            next input, with shape (1, S·B) or (1, S·B, \\*); by default the input is y itself.
        sample: False runs the mean path z = h; the emission is sampled all the same.
        generator: seeds the draws, and then torch's random state stays unchanged; by default the
            draws come from that state.

    Returns:
        The draws of y, with shape (S, N, B) and the event shape. They carry no gradient.

    Raises:
        TypeError: if ``model`` is no :class:`SequenceModel`.
        TypeError, ValueError: if ``steps`` or ``samples`` is no whole number of at least 1, or a
            shape does not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> from noisin_pyro import Additive, NoisyGRU, NormalEmission
        >>> rnn = NoisyGRU(1, 8, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.2)
        >>> model = SequenceModel(torch.nn.Identity(), rnn, NormalEmission(8, 1))
        >>> drawn = forecast(model, torch.randn(20, 4, 1), steps=12, samples=50)
        >>> drawn.shape, drawn.quantile(0.5, dim=0).shape
        (torch.Size([50, 12, 4, 1]), torch.Size([12, 4, 1]))
    """
    check_model("forecast", model)
    check_count("steps", steps)
    check_count("samples", samples)
    if x.dim() < 2 or not len(x):
        raise ValueError(
            f"x must have shape (T, B) or (T, B, ...) with T >= 1, got {tuple(x.shape)}"
        )
    batch, device = x.shape[1], x.device
    options: dict[str, Any] = {"next_input": next_input, "sample": sample}
    with torch.no_grad(), evaluating(model), seeded_by(generator, device):
        if not has_priors(model):
            x = x.repeat(1, samples, *[1] * (x.dim() - 2))
            drawn = continue_sequences(model, x, steps, _copies(state, samples, batch), **options)
        else:
            parts = []
            for place in range(samples):
                with given(draw_priors(model, x[:1])):
                    start = _part(_copies(state, samples, batch), place, batch)
                    parts.append(continue_sequences(model, x, steps, start, **options))
            drawn = torch.cat(parts, 1)
    apart: Tensor = drawn.unflatten(1, (samples, batch))  # (N, S·B, *) -> (N, S, B, *)
    return apart.transpose(0, 1)


def check_count(name: str, count: Any) -> None:
    """Raises TypeError or ValueError unless ``count`` is a whole number of at least 1."""
    if not isinstance(count, SupportsIndex):
        raise TypeError(f"{name} must be a whole number, got {count!r}")
    if count < 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least 1, got {count}")


def continue_sequences(
    model: SequenceModel,
    x: Tensor,
    steps: int,
    state: Any,
    *,
    draw: Callable[[Any], Tensor] = _sample,
    next_input: Callable[[Tensor], Tensor] | None = None,
    sample: bool = True,
) -> Tensor:
    """One continuation of each sequence, in the present training mode and with gradients.

    Args:
        model, x, steps, state, next_input, sample: as of :func:`forecast`, for S = 1.
        draw: a function from the emission of one step to y, with batch shape (1, B).

    Returns:
        The draws of y, with shape (N, B) and the event shape.
    """
    noise = model.draw_noise(len(x) + steps - 1, x.shape[1]) if sample else None

    def run(inputs: Tensor, state: Any, start: int) -> tuple[Any, Any]:
        now = slice(start, start + len(inputs))
        drawn = None if noise is None else noise.steps(now)
        return model.predict(inputs, state, sample=sample, drawn=drawn)

    if len(x) > 1:  # nothing is emitted before the last input
        _, state = run(x[:-1], state, 0)
    read, drawn = x[-1:], []
    for step in range(len(x) - 1, len(x) - 1 + steps):
        if read.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"each step's input has shape {tuple(x.shape[1:])}, and what was drawn to be read "
                f"next {tuple(read.shape[1:])}; give next_input=, which makes the one of the other"
            )
        emitted, state = run(read, state, step)
        y = draw(emitted)
        drawn.append(y)
        read = y if next_input is None else next_input(y)
    return torch.cat(drawn)


def _copies(state: Any, samples: int, batch: int) -> Any:
    """A state for each of the S samples, each part with shape (L, S·B, H)."""

    def copied(part: Tensor) -> Tensor:
        if part.shape[-2] == samples * batch:  # each sample has a state already
            return part
        return part.repeat(*[1] * (part.dim() - 2), samples, 1)

    return map_state(state, copied)


def _part(state: Any, place: int, batch: int) -> Any:
    """The state of one sample, each part with shape (L, B, H)."""
    return map_state(state, lambda part: part.narrow(-2, place * batch, batch))
