"""What the rows of the experiments train."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisin_pyro.experiments.recipe import EXPERIMENTS, Options, Recipe, recipes
from noisin_pyro.experiments.store import due, planned, run_of
from noisin_pyro.training.build import build_model

EVERY = [recipe for experiment in EXPERIMENTS for recipe in recipes(experiment, Options())]


#: The paper's Table 2, typed a second time: NOISIN, NOISIN*, Dropout, None.
TABLE_2 = {
    "1-tanh": (131.9, 140.9, 138.3, 141.4),
    "2-tanh": (140.5, 142.4, 165.2, 157.9),
    "1-sigmoid": (166.0, 144.7, 146.9, 157.4),
    "2-sigmoid": (196.8, 154.3, 152.2, 164.4),
    "1-rectifier": (158.4, 149.2, 169.8, 175.3),
    "2-rectifier": (171.0, 165.9, 168.5, 165.0),
}


METHODS = ("NOISIN", "NOISIN*", "Dropout", "None")


def test_there_is_a_recipe_for_every_cell_of_the_paper() -> None:
    found = {(r.row, r.method): r.paper for r in recipes("table2", Options())}
    suffixes = ("noisin", "noisin-star", "dropout", "none")
    wanted = {
        (f"{block}-{suffix}", method): value
        for block, values in TABLE_2.items()
        for suffix, method, value in zip(suffixes, METHODS, values)
    }
    assert found == wanted
    assert {r.row: r.paper for r in recipes("table3", Options())} == {
        "noisin": 104.7,
        "none": 105.8,
    }
    assert [r.row for r in recipes("figure2", Options())] == ["noisin", "none"]


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_every_entry_of_every_grid_builds_its_model(recipe: Recipe) -> None:
    for point in recipe.grid:
        config = recipe.train_config(point, 1, Options())
        model = build_model(config, 50)
        rnn = model.rnn
        cell, layers = recipe.config["cell"], recipe.config["layers"]
        assert rnn.cell.name == cell.removeprefix("rnn_") and rnn.num_layers == layers
        learned = [name for name, _ in rnn.named_parameters() if "spread" in name]
        assert len(learned) == (layers if recipe.config.get("learn_spread") else 0)
        assert config.deterministic == (recipe.method == "None")
        assert any(rnn.noise) == (recipe.method != "None")
        if recipe.method == "Dropout":
            assert rnn.tied and config.variational_dropout > 0


def test_rows_differ_from_their_protocol_where_they_say_so_alone() -> None:
    """All methods get the same epochs, patience, sizes and optimizer."""
    shared = ("corpus", "embedding_size", "hidden_size", "optimizer", "learning_rate", "schedule",
              "clip_norm", "batch_size", "unroll", "epochs", "patience", "precision")  # fmt: skip
    for corpus in (None, "pydoc"):
        options = Options(corpus=corpus)
        settings = {
            tuple(getattr(r.train_config(p, 1, options), name) for name in shared)
            for r in recipes("table2", options)
            for p in r.grid
        }
        assert len(settings) == 1
    settings = {tuple(r.config.get(name) for name in shared) for r in recipes("table3", Options())}
    assert len(settings) == 1


def test_every_method_has_a_grid_of_the_same_size() -> None:
    sizes = {r.method: len(r.grid) for r in recipes("table2", Options())}
    assert sizes == {"NOISIN": 4, "NOISIN*": 4, "Dropout": 4, "None": 1}
    for recipe in recipes("table2", Options()):
        configs = [recipe.train_config(point, 1, Options()) for point in recipe.grid]
        assert len({str(config) for config in configs}) == len(configs)


def test_figure_2_is_made_of_table_2s_runs() -> None:
    options = Options()
    table = {run.path for r in recipes("table2", options) for run in planned(r, options, Path("x"))}
    for recipe in recipes("figure2", options):
        assert {run.path for run in planned(recipe, options, Path("x"))} <= table
    assert due(recipes("figure2", options), options, Path("x"))


def test_the_lstm_beside_linear_recurrences_is_regularisers(tmp_path: Path) -> None:
    """A block that names another table's shares its records; methods may be another table's too."""
    rows = {recipe.row: recipe for recipe in recipes("linear")}
    theirs = {recipe.row: recipe for recipe in recipes("regularisers")}
    methods = [row.removeprefix("gru-") for row in theirs if row.startswith("gru-")]
    assert len(rows) == 4 * len(methods)
    for method in methods:
        lstm, other = rows[f"lstm-{method}"], theirs[f"lstm-{method}"]
        assert lstm.records == other.name and lstm.config == other.config
        for point in lstm.grid:
            places = [run_of(r, point, 1, Options(), tmp_path).path for r in (lstm, other)]
            assert places[0] == places[1]
        linear, gru = rows[f"rglru-{method}"], theirs[f"gru-{method}"]
        assert linear.grid == gru.grid and linear.records == f"linear/rglru-{method}"
        differing = {k for k in gru.config if gru.config[k] != linear.config[k]}
        assert differing == {"cell", "layers"}
