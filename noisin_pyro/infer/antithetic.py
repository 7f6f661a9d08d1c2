"""Antithetic pairs of noisy RNNs."""

from __future__ import annotations

from typing import Any, cast

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from noisin_pyro.models.drawn import Drawn
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.reflection import check_reflects, reflect

__all__ = ["AntitheticParticles", "antithetic_noise", "check_antithetic"]


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


class AntitheticParticles(Messenger):
    """Draws the noise sites of a model's particles in pairs, as reflections of one another.

    All other sites draw independently: each particle has its own γ and weights, if these have
    priors.

    Args:
        model: the model, with a noise site per sequence.
        vectorized: whether all particles are one run, at dimension −3, so that particle k and
            k + S/2 are a pair. Otherwise the first run under this handler draws and the second
            reflects, and so on.
    """

    def __init__(self, model: SequenceModel, vectorized: bool) -> None:
        super().__init__()
        self._model, self._vectorized = model, vectorized
        self._drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        noise = self._noises().get(msg["name"])
        if noise is None or msg["value"] is not None:
            return
        fn = msg["fn"]
        if self._vectorized:
            particles, *rest = fn.batch_shape
            half = fn.expand((particles // 2, *rest))()
            msg["value"] = torch.cat([half, reflect(noise, half)])
        elif msg["name"] in self._drawn:
            msg["value"] = reflect(noise, self._drawn.pop(msg["name"]))
        else:
            msg["value"] = self._drawn[msg["name"]] = fn()

    def _noises(self) -> dict[str, AffineNoise]:
        """The noises by the names of their sites, which are known only during a call."""
        model, rnn = self._model, self._model.rnn
        noises = {rnn._pyro_get_fullname(f"noise_{i}"): noise for i, noise in enumerate(rnn.noise)}
        noises[model._pyro_get_fullname("input_noise")] = model.input_noise
        return {name: cast(AffineNoise, noise) for name, noise in noises.items() if noise}


def _paired(noise: AffineNoise, epsilon: Tensor) -> Tensor:
    """Appends the reflected noise along the batch: (T, B/2, H) -> (T, B, H)."""
    return torch.cat([epsilon, reflect(noise, epsilon)], -2)


def _noises(model: SequenceModel) -> list[Noise]:
    noises = [*model.rnn.noise, model.input_noise]
    return [noise for noise in noises if noise is not None]
