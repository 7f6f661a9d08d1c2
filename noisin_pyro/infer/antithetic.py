"""Antithetic pairs of noisy RNNs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from noisin_pyro.models.sequence import Drawn, SequenceModel
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.reflection import check_reflects, reflect

__all__ = ["antithetic_noise", "check_antithetic"]


def check_antithetic(model: SequenceModel, samples: int) -> None:
    """Checks that a number of noisy RNNs can run in antithetic pairs.

    Args:
        model: the model.
        samples: S.

    Raises:
        ValueError: if S is not even and positive, or a noise of the model has no reflection.
    """
    if samples < 2 or samples % 2:
        raise ValueError(
            f"antithetic=True draws noise in pairs, so samples must be even and at least 2, got "
            f"{samples}"
        )
    for noise in _noises(model):
        check_reflects(noise)
    if model.rnn.samples_timesteps:
        raise ValueError(
            "antithetic=True needs noise drawn for whole sequences, got an RNN with a sample site "
            "per timestep; use sites='sequence'"
        )


def antithetic_noise(model: SequenceModel, steps: int, batch: int) -> Drawn:
    """Noise whose second half is the reflection of its first, for ``model.predict(drawn=...)``.

    Sequence b < batch/2 and sequence b + batch/2 are a pair: every ε of the one, in all layers and
    steps, is the reflection of the other's (:mod:`noisin_pyro.noise.reflection`).

    Args:
        model: the model.
        steps: T.
        batch: the number of sequences of both halves.

    Raises:
        ValueError: as :func:`check_antithetic`, with ``samples=batch``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, LanguageModel, NoisyRNN
        >>> rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> drawn = antithetic_noise(LanguageModel(10, rnn), 5, 4)
        >>> bool((drawn.rnn[0][:, :2] == -drawn.rnn[0][:, 2:]).all())
        True
    """
    check_antithetic(model, batch)
    half = model.draw_noise(steps, batch // 2)
    on_input = half.input
    if on_input is not None:
        assert model.input_noise is not None
        on_input = _paired(model.input_noise, on_input)
    assert half.rnn is not None
    layers = [
        None if epsilon is None else _paired(cast(AffineNoise, noise), epsilon)
        for noise, epsilon in zip(model.rnn.noise, half.rnn, strict=True)
    ]
    return Drawn(on_input, layers)


def _paired(noise: AffineNoise, epsilon: Tensor) -> Tensor:
    """(T, B/2, H) -> (T, B, H)."""
    return torch.cat([epsilon, reflect(noise, epsilon)], -2)


def _noises(model: SequenceModel) -> list[Noise]:
    noises = [*model.rnn.noise, model.input_noise]
    return [noise for noise in noises if noise is not None]
