"""Builds the model and the optimizer of a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.nn.per_layer import per_layer
from noisin_pyro.nn.registry import RNNS, build_rnn
from noisin_pyro.nn.weight_drop import weight_drop
from noisin_pyro.noise.affine import Additive, Multiplicative
from noisin_pyro.noise.class_path import build_distribution
from noisin_pyro.noise.families import family
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.trainable import spread_parameters
from noisin_pyro.training.config import TrainConfig

__all__ = ["averaged_weights", "build_model", "build_noise", "build_optimizer"]


def build_noise(config: TrainConfig, spread: float) -> Additive | Multiplicative | None:
    """The noise of a layer whose spread, or initial spread if it is learned, is ``spread``.

    Raises:
        ValueError: if a distribution named by its class path cannot be built.
    """
    noise = config.noise
    if config.variational_dropout:
        if RNNS[config.cell].mask is None:
            return None
        return family("bernoulli", "multiplicative", spread)
    if noise == "none":
        return None
    if isinstance(noise, str) and "." not in noise:
        return family(noise, config.injection, spread)
    named = {"class_path": noise} if isinstance(noise, str) else noise
    base = build_distribution(named, config.trust_code)
    return Additive(base) if config.injection == "additive" else Multiplicative(base)


def build_model(config: TrainConfig, vocab_size: int) -> LanguageModel:
    """The language model of a configuration, with weights drawn from torch's random state.

    Raises:
        ValueError: if the noise or a spread does not fit.
    """
    rate = config.variational_dropout
    every = rate or config.dropout  # on every connection that is not recurrent
    starts = per_layer(
        math.sqrt(rate / (1 - rate)) if rate else config.spread, config.layers, "spread"
    )
    noise = [build_noise(config, start) for start in starts]
    spread = [Learned(s, config.spread_floor) if config.learn_spread else s for s in starts]
    options: dict[str, Any] = {
        "noise": noise,
        "spread": spread,
        "noise_to": (RNNS[config.cell].mask or "both") if rate else config.noise_to,
        "tied": bool(rate) or config.tied,
        "zoneout": _zoneout(config),
        "dropout": config.dropout_layers or (every if config.layers > 1 else 0.0),
    }
    sizes = (config.embedding_size, config.hidden_size, config.layers)
    rnn = build_rnn(config.cell, *sizes, **options)
    if config.weight_drop:
        weight_drop(rnn, p=config.weight_drop)
    return LanguageModel(
        vocab_size,
        rnn,
        tied_weights=config.tied_weights,
        dropout_words=rate or config.dropout_words,
        dropout_input=every or config.dropout_input,
        dropout_output=every or config.dropout_output,
    )


def _zoneout(config: TrainConfig) -> float | list[float]:
    """One rate for every part of the state, or a list with one for each part."""
    rates = config.zoneout
    return rates[0] if isinstance(rates, list) and len(rates) == 1 else rates


def build_optimizer(config: TrainConfig, model: nn.Module, steps_per_epoch: int) -> Optimizer:
    """The optimizer of a configuration; ASGD averages from the second epoch on.

    Weight decay is not applied to γ, whose unconstrained value it would pull to 0.
    """
    parameters: list[Any] = list(model.parameters())
    rate, decay = config.learning_rate, config.weight_decay
    if decay:
        spreads = {id(spread) for spread in spread_parameters(model)}
        without_decay = [parameter for parameter in parameters if id(parameter) in spreads]
        with_decay = [parameter for parameter in parameters if id(parameter) not in spreads]
        parameters = [{"params": with_decay}]
        if without_decay:
            parameters.append({"params": without_decay, "weight_decay": 0.0})
    if config.optimizer == "adam" and decay:
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    return torch.optim.ASGD(parameters, lr=rate, lambd=0.0, t0=steps_per_epoch, weight_decay=decay)


@contextmanager
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """Replaces the weights by ASGD's averages in a block; with other optimizers it does nothing."""
    averaged = [
        (parameter, parameter.detach().clone(), optimizer.state[parameter]["ax"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "ax" in optimizer.state.get(parameter, {})
    ]
    with torch.no_grad():
        for parameter, _, average in averaged:
            parameter.copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight, _ in averaged:
                parameter.copy_(weight)
