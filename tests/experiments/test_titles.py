"""A model has what its method's title and its entry's name in the grid promise, and no more."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from noisin_pyro.experiments.recipe import EXPERIMENTS, Options, Recipe, recipes
from noisin_pyro.nn.weight_drop import WeightDrop
from noisin_pyro.noise.affine import AffineNoise
from noisin_pyro.spread.learned import Learned
from noisin_pyro.training.build import build_model, build_optimizer
from noisin_pyro.training.config import TrainConfig

EVERY = [recipe for experiment in EXPERIMENTS for recipe in recipes(experiment, Options())]
#: The bases of the families that the recipes name.
BASES = {"gaussian": "Normal", "logistic": "Logistic", "laplace": "Laplace", "gamma": "Gamma",
         "bernoulli": "Bernoulli", "gumbel": "Gumbel", "beta": "Beta", "chi2": "Chi2",
         "chi-square": "Chi2"}  # fmt: skip
#: What the mask of variational dropout is on; the others have no recurrent weights.
MASKS = {"lstm": "recurrence", "rnn_tanh": "recurrence", "rnn_relu": "recurrence",
         "rnn_sigmoid": "recurrence", "gru": "weights"}  # fmt: skip


def switched_on(config: TrainConfig) -> dict[str, Any]:
    """All that regularises in a model and its optimizer, but for what is off."""
    model = build_model(config, 50)
    rnn = model.rnn
    drops = [part.p for part in rnn.modules() if isinstance(part, WeightDrop)]
    groups = build_optimizer(config, model, 7).param_groups
    affine = [noise for noise in rnn.noise if isinstance(noise, AffineNoise)]
    learned = [spread for spread in rnn._spreads.values() if isinstance(spread, Learned)]
    spreads = [round(value.item(), 3) for value in rnn.spread if value is not None]
    found: dict[str, set[Any]] = {
        "noise": {(type(one).__name__.lower(), type(one.base).__name__) for one in affine},
        "spread": set() if learned else set(spreads),
        "floor": {spread.lower for spread in learned},
        "noise_to": {rnn.noise_to} - {"both"},
        "tied": {rnn.tied} - {False},
        "zoneout": set(rnn.zoneout) - {0.0},
        "weight_drop": set(drops),
        "weight_decay": {group["weight_decay"] for group in groups} - {0.0},
        "words": {model.dropout_words} - {0.0},
        "input": {model.dropout_input} - {0.0},
        "layers": {rnn.dropout} - {0.0},
        "output": {model.dropout_output} - {0.0},
    }
    assert len(drops) in (0, config.layers) and len(affine) in (0, config.layers)
    assert all(spread.init > spread.lower for spread in learned)
    return {name: value for name, values in found.items() for value in values}


def promised(recipe: Recipe, point: str) -> dict[str, Any]:
    """What the words say; the numbers of an entry's name are in its order."""
    title, layers = recipe.method, recipe.config["layers"]
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*", point)]
    first = numbers[0] if numbers else math.nan
    between = {"layers": first} if layers > 1 else {}
    zaremba = {"input": first, "output": first, **between}
    if title == "None":
        return {}
    if title == "Weight decay":
        return {"weight_decay": first}
    if title == "Zoneout":
        return {"zoneout": first}
    if title == "Weight drop":
        return {"weight_drop": first}
    if title == "Dropout, Zaremba":
        return zaremba
    if title in ("Dropout", "Variational dropout"):
        masks = {"words": first, "tied": True, **zaremba}
        if recipe.config["cell"] not in MASKS:
            return masks
        spread = round(math.sqrt(first / (1 - first)), 3)
        where = {"noise_to": MASKS[recipe.config["cell"]]}
        return {**masks, **where, "noise": ("multiplicative", "Bernoulli"), "spread": spread}
    if title == "Dropout + NOISIN":
        return {**zaremba, "noise": ("multiplicative", "Normal"), "spread": numbers[1]}
    if title in ("multiplicative 0.5", "multiplicative 1", "additive 0.5", "additive 1"):
        kind, number = title.split()
        return {"noise": (kind, "Normal"), "spread": float(number)}
    if title in ("with a floor", "without a floor"):
        floor = first if title == "with a floor" else 0.0
        return {"noise": ("multiplicative", "Normal"), "floor": floor}
    if title in ("NOISIN", "NOISIN*", "NOISIN, additive", "NOISIN, multiplicative"):
        kind = title.partition(", ")[2] or point.partition("-")[0]
        learned = "floor" if title == "NOISIN*" or recipe.name == "table3/noisin" else "spread"
        where = {"noise_to": "output"} if point.endswith("-output") else {}
        return {"noise": (kind, "Normal"), learned: first, **where}
    # of the paper of 2018: a family, dropout (D) at fixed rates, or both
    base = title.removeprefix("D+").lower()
    dropout = {"input": 0.5, "layers": 0.4, "output": 0.5}
    if base == "dropout (d)":
        return dropout
    spread = round(math.sqrt((1 - first) / first), 2) if point.startswith("keep") else first
    own = {"noise": ("multiplicative", BASES[base]), "spread": spread}
    return {**dropout, **own} if title.startswith("D+") else own


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_a_model_has_what_its_title_says(recipe: Recipe) -> None:
    for point in recipe.grid:
        config = recipe.train_config(point, 1, Options())
        config = replace(config, hidden_size=6, embedding_size=6)
        found, wanted = switched_on(config), promised(recipe, point)
        assert found.keys() == wanted.keys(), point
        for name, value in wanted.items():
            near = pytest.approx(value, abs=0.02 if point.startswith("keep") else 1e-3)
            assert found[name] == (near if isinstance(value, float) else value), (point, name)


def test_the_optimizer_of_2018_is_averaged_sgd() -> None:
    for recipe in recipes("icml"):
        (point,) = recipe.grid
        config = replace(recipe.train_config(point, 1, Options()), hidden_size=6, embedding_size=6)
        model = build_model(config, 50)
        optimizer = build_optimizer(config, model, 7)
        (group,) = optimizer.param_groups
        assert type(optimizer).__name__ == "ASGD" and (group["t0"], group["lambd"]) == (7, 0.0)
        assert group["lr"] == 30.0 and config.schedule == "divide-when-worse:1.2"
        assert model.emission.weight is model.embedding.weight
