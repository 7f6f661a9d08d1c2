"""The configuration of a language model as JSON values: writing it, and building the model.

A description may come from a stranger, so each value is checked. The only classes that it can name
are the RNNs and noises of this library, and distributions that
:mod:`noisin_pyro.noise.class_path` accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisin_pyro.models.schema import (
    CLASSES,
    DTYPES,
    FORMAT,
    LEARNED,
    NOISE,
    NOISES,
    NUMBER,
    RATES,
    SIZES,
    SPREAD,
    check_description,
    checked,
)
from noisin_pyro.nn.weight_drop import WeightDrop, weight_drop
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.noise.class_path import build_distribution, describe_distribution, dtype_of
from noisin_pyro.noise.mean_parameterized import MeanParameterized
from noisin_pyro.noise.moments import moments
from noisin_pyro.parameters import priors_of
from noisin_pyro.spread.learned import Learned
from noisin_pyro.spread.number import rounds_to
from noisin_pyro.spread.prior import ComputedPrior, Prior
from noisin_pyro.tokens import Tokens

if TYPE_CHECKING:
    from noisin_pyro.models.language import LanguageModel

__all__ = ["Description", "describe"]

Model = TypeVar("Model", bound="LanguageModel")

REMEDY = "save its state_dict() instead, and build the model by your own code"


def describe(model: LanguageModel) -> dict[str, Any]:
    """The description of a model: its classes and arguments, without its weights.

    Raises:
        ValueError: if a part has no description: a user's cell or function, a base whose arguments
            are not numbers, a prior on a weight, other parametrizations than weight drop.
    """
    rnn: Any = model.rnn
    kind, dropped = _weight_drop(rnn)
    name = kind.__name__
    if CLASSES.get(name) != kind.__module__:
        raise ValueError(f"a {name} runs code of your own, which no file describes; {REMEDY}")
    _refuse_weight_priors(model)
    options = ["nonlinearity"] if name == "NoisyRNN" else []
    options += [*SIZES, "bias", "dropout", "sites", "tied", "noise_to"]
    values: dict[str, Any] = {
        "format": FORMAT,
        "dtype": str(rnn.like.dtype).removeprefix("torch."),
        "vocab_size": model.vocab_size,
        "tied_weights": model.tied_weights,
        **{name: getattr(model, name) for name in RATES},
        "input_noise": _describe_noise(model.input_noise),
        "rnn": {
            "class": name,
            **{option: getattr(rnn, option) for option in options},
            "zoneout": list(rnn.zoneout),
            "weight_drop": dropped,
            "noise": [_describe_noise(noise) for noise in rnn.noise],
            "spread": [
                _describe_spread(rnn, f"spread_l{layer}") if noise is not None else None
                for layer, noise in enumerate(rnn.noise)
            ],
        },
    }
    if model.input_noise is not None:
        values["input_spread"] = _describe_spread(model, "input_spread")
    if values["dtype"] not in DTYPES:
        raise ValueError(f"weights must be {', '.join(DTYPES)}, got {values['dtype']}")
    return values


class Description:
    """A description read from a file, and checked. Its model is built when the weights are known.

    Args:
        values: the values that :func:`describe` returned, after JSON.
        trust_code: import and call the class of any noise.

    Attributes:
        dtype, vocab_size, tokens, tied_weights: those of the model and its vocabulary.
        sizes: input size, hidden size and number of layers of the RNN.

    Raises:
        ValueError: if an entry is unknown or missing, or a value has another type or range.
    """

    def __init__(self, values: Any, trust_code: bool = False) -> None:
        model, rnn = check_description(values)
        self.dtype = DTYPES[model.get("dtype", "float32")]
        self.vocab_size: int = model["vocab_size"]
        self.tokens: Tokens = model.get("tokens", "words")
        self.tied_weights: bool = model.get("tied_weights", False)
        self.sizes = tuple(rnn[name] for name in SIZES)
        self._trust_code = trust_code
        self._made: list[tuple[Any, AffineNoise]] = []  # equal descriptions share a noise
        named = ("format", "dtype", "vocab_size", "tokens", "rnn", "input_spread")
        self._options = {name: value for name, value in model.items() if name not in named}
        self._options["input_noise"] = self._noise(model.get("input_noise"))
        self._input_spread = model.get("input_spread")
        layers = [None] * rnn["num_layers"]
        self._noises = [self._noise(one) for one in rnn.pop("noise", None) or layers]
        self._spreads = rnn.pop("spread", None) or layers
        self._weight_drop = rnn.pop("weight_drop", 0.0)
        self._kind = rnn.pop("class")
        self._rnn = rnn

    def check_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compares the described sizes with the weights, before a model of that size is allocated.

        Args:
            shapes: the shapes of the weights by their names.

        Raises:
            ValueError: if they differ.
        """
        inputs, hidden, _ = self.sizes
        first = {
            "embedding.weight": [(self.vocab_size, inputs)],
            "rnn.weight_ih_l0": [(gates * hidden, inputs) for gates in (1, 2, 3, 4)],
        }
        for name, expected in first.items():
            if shapes.get(name) not in expected:
                raise ValueError(
                    f"its vocab_size {self.vocab_size}, input_size {inputs} and hidden_size "
                    f"{hidden} are not those of the weights, whose {name} has shape "
                    f"{shapes.get(name)}"
                )

    def build(self, kind: type[Model], weights: Mapping[str, Tensor], name: str = "") -> Model:
        """Builds the model with initial weights.

        Args:
            kind: the model's class.
            weights: the saved weights by their names, from which a γ that is a tensor is taken.
            name: the prefix of its parameters' and sites' names in Pyro.

        Raises:
            ValueError, TypeError: if a value is invalid for the model.
        """
        spreads = [
            0.5 if noise is None else self._spread(spread, f"rnn.spread_l{layer}", weights)
            for layer, (noise, spread) in enumerate(zip(self._noises, self._spreads))
        ]
        build_rnn = getattr(import_module(CLASSES[self._kind]), self._kind)
        rnn = build_rnn(**self._rnn, noise=self._noises, spread=spreads)
        if self._weight_drop:
            weight_drop(rnn, p=self._weight_drop)
        options = dict(self._options)
        if options["input_noise"] is not None:
            options["input_spread"] = self._spread(self._input_spread, "input_spread", weights)
        return kind(self.vocab_size, rnn, **options, name=name).to(self.dtype)

    def _noise(self, values: Any) -> AffineNoise | None:
        """The noise of a description, the same object for equal descriptions."""
        if values is None:
            return None
        values = checked(values, "a noise", NOISE, ("class", "base"))
        if values["class"] not in NOISES:
            known = ", ".join(NOISES)
            raise ValueError(f"unknown noise {values['class']!r}; the known ones are {known}")
        made = next((noise for before, noise in self._made if before == values), None)
        if made is None:
            given = {name: values[name] for name in ("mean", "stddev") if name in values}
            made = NOISES[values["class"]](self._distribution(values["base"]), **given)
            self._made.append((values, made))
        return made

    def _distribution(self, values: dict[str, Any]) -> Any:
        named = dict(values)
        dtype = named.pop("dtype", "float32")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        with torch.device("cpu"):  # a model is also built on the meta device
            return build_distribution(named, self._trust_code, DTYPES[dtype])

    def _spread(self, values: Any, name: str, weights: Mapping[str, Tensor]) -> Any:
        """The value for ``spread=`` of a description; a tensor is taken from ``weights[name]``."""
        if isinstance(values, NUMBER) and not isinstance(values, bool):
            return float(values)
        entries = list(checked(values, "a spread", SPREAD).items())
        if len(entries) != 1:
            raise ValueError(f"a spread must have one of {', '.join(SPREAD)}, got {values!r}")
        kind, value = entries[0]
        if kind == "learned":
            return Learned(**checked(value, "a learned spread", LEARNED, ("init",)))
        if kind == "prior":
            return Prior(self._distribution(value))
        if name not in weights:
            raise ValueError(f"the weights have no {name}")
        tensor = weights[name].clone()
        return nn.Parameter(tensor) if kind == "parameter" else tensor


def _weight_drop(rnn: nn.Module) -> tuple[type, float]:
    """The class of an RNN without weight drop, and the rate of its weight drop, 0 for none.

    A parametrization replaces the class of a module by a subclass.

    Raises:
        ValueError: if it has other parametrizations, or weight drop not on all recurrent weights.
    """
    if not parametrize.is_parametrized(rnn):
        return type(rnn), 0.0
    parts: Any = rnn.parametrizations
    recurrent = {f"weight_hh_l{layer}" for layer in range(rnn.num_layers)}  # type: ignore[arg-type]
    kinds = {type(each) for part in parts.values() for each in part}
    rates = {each.p for part in parts.values() for each in part if isinstance(each, WeightDrop)}
    alone = all(len(part) == 1 for part in parts.values())
    if not (set(parts) == recurrent and alone and kinds == {WeightDrop} and len(rates) == 1):
        raise ValueError(
            "of parametrizations a file describes weight_drop(rnn) alone, with one rate, got "
            f"{', '.join(parts)}; {REMEDY}"
        )
    return type(rnn).__bases__[0], rates.pop()


def _refuse_weight_priors(model: LanguageModel) -> None:
    paths = {part: path for path, part in model.named_modules()}
    for part, name in priors_of(model):
        if name not in getattr(part, "_spreads", ()):
            full = f"{paths[part]}.{name}".removeprefix(".")
            raise ValueError(
                f"{full} has a prior, which no file describes; load the guide's median into a "
                "model without priors (see weight_priors) and save that"
            )


def _describe_noise(noise: Any) -> dict[str, Any] | None:
    if noise is None:
        return None
    name = type(noise).__name__
    if isinstance(noise, MeanParameterized):
        raise ValueError(f"a MeanParameterized noise is a function, which no file holds; {REMEDY}")
    if NOISES.get(name) is not type(noise):
        raise ValueError(f"a {name} is a noise of your own, which no file describes; {REMEDY}")
    values: dict[str, Any] = {"class": name}
    values |= {"base": _describe_distribution(noise.base, f"the base of {name}")}
    if any(map(math.isnan, moments(noise.base))):
        values |= {"mean": noise.mean, "stddev": noise.stddev}
    return values


def _describe_distribution(distribution: Any, what: str) -> dict[str, Any]:
    try:
        with torch.device("cpu"):
            values = describe_distribution(distribution)
    except ValueError as error:
        raise ValueError(f"{what} cannot be described, since {error}; {REMEDY}") from None
    dtype = str(dtype_of(distribution)).removeprefix("torch.")
    return values if dtype == "float32" else {**values, "dtype": dtype}


def _describe_spread(module: Any, name: str) -> Any:
    spread = module._spreads[name]
    if isinstance(spread, Learned):
        return {"learned": {"init": spread.init, "lower": spread.lower, "per": spread.per}}
    if isinstance(spread, Prior):
        return {"prior": _describe_distribution(spread.distribution, f"the prior on {name}")}
    if isinstance(spread, ComputedPrior):
        raise ValueError(f"the prior on {name} cannot be described, as it is a function; {REMEDY}")
    gamma, number = getattr(module, name), module._numbers.get(name)
    if number is not None:
        return number if rounds_to(number, gamma) else float(gamma)
    return {"parameter" if isinstance(gamma, nn.Parameter) else "tensor": True}
