"""The search space of a study: options of noise and dropout that the user has not given."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from noisin_pyro.training.config import DROPOUTS, TrainConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

__all__ = ["SEARCHED", "first_guess", "number_of_settings", "searched", "suggest"]

#: Four distributions of ε; some twenty trials could not distinguish more.
CHOICES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian", "laplace", "gumbel", "bernoulli"),
    "injection": ("multiplicative", "additive"),
    "noise_to": ("both", "output", "recurrence"),
}
#: The range of γ, searched on a log scale, for each kind of noise.
SPREADS = {"multiplicative": (0.2, 2.5), "additive": (0.05, 1.0)}
HIGHEST, STEP = 0.5, 0.05  # the highest dropout rate, and the grid of rates
DIGITS = 3  # significant digits of γ

#: The options that can be searched, in the order in which they are drawn.
SEARCHED = (*CHOICES, "spread", *DROPOUTS)


def searched(base: TrainConfig, fixed: Set[str]) -> tuple[str, ...]:
    """The options that a study searches.

    Args:
        base: the configuration of the study.
        fixed: the names of the options that the user has given.

    Raises:
        ValueError: if nothing is left to search, ``variational_dropout`` is given, or γ is learned
            and would be searched too.

    Example:
        >>> searched(TrainConfig(noise="none", layers=2), {"noise", "dropout_words"})
        ('dropout_input', 'dropout_layers', 'dropout_output')
    """
    left = set(SEARCHED) - fixed
    if base.noise == "none":
        left -= {"noise", "injection", "noise_to", "spread"}
    if base.layers == 1:
        left.discard("dropout_layers")
    if base.dropout:  # it replaces these three
        left -= {"dropout_input", "dropout_layers", "dropout_output"}
    if base.variational_dropout:
        raise ValueError(
            "noisin tune searches the noise and the dropout whose places variational_dropout "
            f"takes, got variational_dropout {base.variational_dropout}; leave it out"
        )
    if base.learn_spread and "spread" in left:
        raise ValueError(
            "with learn_spread true γ is learned and not searched; give the spread to start from, "
            "or leave learn_spread out"
        )
    if not left:
        raise ValueError(
            f"every option that noisin tune searches is given ({', '.join(SEARCHED)}); leave out "
            "one of them"
        )
    return tuple(name for name in SEARCHED if name in left)


def number_of_settings(names: tuple[str, ...]) -> float:
    """How many different settings there are to draw; infinite if γ is searched.

    Example:
        >>> number_of_settings(("noise_to", "dropout_words")), number_of_settings(("spread",))
        (33, inf)
    """
    rates = round(HIGHEST / STEP) + 1
    counts = {"spread": math.inf, **{name: len(values) for name, values in CHOICES.items()}}
    return math.prod(counts.get(name, rates) for name in names)


def suggest(trial: BaseTrial, names: tuple[str, ...], base: TrainConfig) -> dict[str, Any]:
    """The values of a trial, by option.

    Args:
        trial: an Optuna trial; a value that it has drawn before is returned again.
        names: the searched options.
        base: the configuration of the study.
    """
    chosen: dict[str, Any] = {}
    for name in names:
        if name in CHOICES:
            chosen[name] = trial.suggest_categorical(name, CHOICES[name])
        elif name == "spread":
            kind = chosen.get("injection", base.injection)
            low, high = SPREADS[kind]
            drawn = trial.suggest_float(f"spread_{kind}", low, high, log=True)
            chosen[name] = float(f"{drawn:.{DIGITS}g}")
        else:
            chosen[name] = round(trial.suggest_float(name, 0.0, HIGHEST, step=STEP), 2)
    return chosen


def first_guess(names: tuple[str, ...], base: TrainConfig) -> dict[str, Any]:
    """The first trial, by the names of Optuna's parameters: the default noise and no dropout."""
    kind = base.injection if "injection" not in names else CHOICES["injection"][0]
    guess: dict[str, Any] = {name: values[0] for name, values in CHOICES.items()}
    guess |= dict.fromkeys(DROPOUTS, 0.0)
    guess = {name: value for name, value in guess.items() if name in names}
    if "spread" in names:
        guess[f"spread_{kind}"] = {"multiplicative": 1.0, "additive": 0.2}[kind]
    return guess
