"""What the rows of the experiments train."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from noisin_pyro.cli.reproduce import reproduce
from noisin_pyro.experiments.job import run as run_job
from noisin_pyro.experiments.recipe import EXPERIMENTS, Options, Recipe, recipes
from noisin_pyro.experiments.store import due, planned, run_of
from noisin_pyro.nn.registry import RNNS
from noisin_pyro.training.build import build_model
from tests.experiments.fakes import fake, row_of

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
WITHOUT_NOISE = {"None", "Weight decay", "Dropout, Zaremba", "Zoneout", "Weight drop"}
WITHOUT_NOISE.add("Dropout (D)")  # of the paper of 2018


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
        if config.hidden_size > 500:  # built at a tenth of its size
            small = config.hidden_size // 10
            config = replace(config, hidden_size=small, embedding_size=small)
        model = build_model(config, 50)
        rnn = model.rnn
        cell, layers = recipe.config["cell"], recipe.config["layers"]
        assert rnn.cell.name == cell.removeprefix("rnn_") and rnn.num_layers == layers
        learned = [name for name, _ in rnn.named_parameters() if "spread" in name]
        assert len(learned) == (layers if recipe.config.get("learn_spread") else 0)
        assert config.deterministic == (recipe.method in WITHOUT_NOISE)
        masked = config.variational_dropout == 0 or RNNS[cell].mask is not None
        assert any(rnn.noise) == (not config.deterministic and masked)
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
    methods = ["none", "variational-dropout", "noisin-additive", "noisin-multiplicative"]
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


def test_the_regularisers_are_compared_with_equal_means() -> None:
    """Every block has every method; one block reads a part of another text.

    Grids have four entries, and a fifth where the largest of the four was the best.
    """
    rows = recipes("regularisers")
    assert len(rows) == 3 * 9
    sizes = {recipe.method: len(recipe.grid) for recipe in rows if recipe.method != "None"}
    longer = ["Weight decay", "Dropout, Zaremba", "Zoneout", "Weight drop"]
    assert sizes == {method: 5 if method in longer else 4 for method in sizes}
    slices = {
        recipe.row: recipe.train_config("plain", 1, Options())
        for recipe in rows
        if recipe.method == "None"
    }
    assert {row: (c.corpus, c.train_tokens) for row, c in slices.items()} == {
        "lstm-none": ("pydoc", 0),
        "gru-none": ("pydoc", 0),
        "lstm-ptb-none": ("ptb", 200_000),
    }
    other = recipes("regularisers", Options(corpus="hmm"))  # whose length is another
    assert all("train_tokens" not in recipe.config for recipe in other)


def test_one_folder_of_texts_serves_an_experiment_of_several_corpora() -> None:
    """Only the published ones have files."""
    options = Options(data_dir="texts")
    for recipe in recipes("regularisers", options):
        config = recipe.train_config(recipe.points(options)[0], 1, options)
        assert config.data_dir == ("texts" if config.corpus == "ptb" else None)


#: What a reproduction may change, and the option of a run that it then is.
CHANGED: dict[str, Any] = {"epochs": 2, "precision": "bf16-mixed", "device": "mps", "data_dir": "d"}


def test_what_a_reproduction_changes_reaches_its_runs(tmp_path: Path) -> None:
    def runs(**changes: Any) -> list[Any]:
        options = Options(**changes)
        return [run.config for run in planned(row_of("1-tanh-noisin"), options, tmp_path)]

    for name, value in CHANGED.items():
        for config, plain in zip(runs(**{name: value}), runs(), strict=True):
            assert getattr(plain, name) != value and config == replace(plain, **{name: value})
    assert runs(grid=2) == runs()[:2]
    assert {field.name for field in fields(Options)} == {*CHANGED, "grid", "seeds", "corpus"}


def test_seeds_are_seeds_of_a_run(tmp_path: Path) -> None:
    """The entries of the grid with seed 1; then the best one alone, with the others."""
    recipe, options = row_of("1-tanh-noisin"), Options(seeds=3)
    first = planned(recipe, options, tmp_path)
    for place, run in enumerate(first):
        fake(run, 140 - place % 2, 130)
    configs = [run.config for run in planned(recipe, options, tmp_path)]
    assert [config.seed for config in configs] == [1, 1, 1, 1, 2, 3]
    best = configs[1]
    assert configs[4:] == [replace(best, seed=2), replace(best, seed=3)]


def test_a_corpus_brings_its_sizes() -> None:
    recipe = recipes("table2", Options(corpus="pydoc"))[0]
    config = recipe.train_config(next(iter(recipe.grid)), 1, Options(corpus="pydoc"))
    assert (config.corpus, config.hidden_size, config.embedding_size) == ("pydoc", 128, 128)
    assert (config.epochs, config.patience) == (40, 4)
    other = recipes("table2", Options(corpus="hmm"))[0].config
    assert other == {**recipes("table2")[0].config, "corpus": "hmm"}


#: The follow-up's tables 3 and 4, typed a second time: γ as it is printed and the test perplexity,
#: for Penn Treebank medium and large and WikiText-2 medium and large.
ICML = {
    "None": ((None, 109), (None, 123), (None, 136), (None, 140)),
    "Gaussian": ((1.10, 71.8), (1.37, 69.1), (1.00, 87.8), (1.37, 83.4)),
    "Logistic": ((1.06, 72.3), (1.39, 69.3), (1.00, 88.4), (1.28, 83.5)),
    "Laplace": ((1.06, 72.4), (1.39, 69.4), (1.00, 89.8), (1.28, 83.4)),
    "Gamma": ((1.06, 74.5), (1.39, 69.5), (0.72, 92.9), (1.39, 84.5)),
    "Bernoulli": ((0.41, 71.4), (0.33, 68.3), (0.54, 86.6), (0.41, 83.0)),
    "Gumbel": ((1.06, 72.7), (1.39, 69.5), (1.00, 90.9), (1.28, 84.0)),
    "Beta": ((1.07, 71.4), (1.50, 70.2), (0.80, 87.2), (1.50, 82.9)),
    "Chi-square": ((1.50, 80.7), (1.20, 75.5), (0.20, 105), (1.50, 92.9)),
    "Dropout (D)": ((None, 77.0), (None, 75.3), (None, 84.8), (None, 91.0)),
    "D+Gaussian": ((0.53, 70.4), (0.92, 66.1), (0.50, 82.3), (0.69, 77.7)),
    "D+Bernoulli": ((0.80, 70.1), (0.50, 66.1), (0.50, 94.4), (0.64, 76.8)),
    "D+Beta": ((0.20, 69.2), (0.70, 66.2), (0.10, 82.3), (0.60, 77.9)),
}
SIZES = {
    "medium, Penn Treebank": ("ptb", 650),
    "large, Penn Treebank": ("ptb", 1500),
    "medium, WikiText-2": ("wikitext-2", 650),
    "large, WikiText-2": ("wikitext-2", 1500),
}


def test_the_command_line_knows_every_experiment() -> None:
    known = get_args(get_type_hints(reproduce)["experiment"])
    assert known == ("table1", *EXPERIMENTS)


def test_the_tables_of_the_paper_of_2018() -> None:
    rows = {(recipe.method, recipe.block): recipe for recipe in recipes("icml")}
    assert set(rows) == {(method, block) for method in ICML for block in SIZES}
    for (method, block), recipe in rows.items():
        printed, test = ICML[method][list(SIZES).index(block)]
        assert recipe.paper == test
        (point,) = recipe.grid
        config = recipe.train_config(point, 1, Options())
        assert (config.corpus, config.hidden_size) == SIZES[block]
        assert config.tied_weights and config.injection == "multiplicative"
        dropouts = (config.dropout_input, config.dropout_layers, config.dropout_output)
        assert dropouts == ((0.5, 0.4, 0.5) if method.startswith("D") else (0.0, 0.0, 0.0))
        family = method.removeprefix("D+")
        if printed is None:
            assert config.noise == "none"
        elif family == "Bernoulli":  # γ is printed as the keep probability
            assert config.noise == "bernoulli" and not isinstance(config.spread, list)
            assert 1 / (1 + config.spread**2) == pytest.approx(printed, abs=1e-3)
        elif family in ("Beta", "Chi-square"):  # γ is printed as a shape
            assert config.noise in ("beta", "chi2") and point.startswith("assumed")
        else:
            assert config.noise == family.lower() and config.spread == printed


@pytest.mark.parametrize("row", ["medium-ptb-gaussian", "large-wikitext-2-dropout-bernoulli"])
def test_a_row_of_2018_for_one_epoch_at_a_tenth_of_its_size(row: str, tmp_path: Path) -> None:
    (recipe,) = (recipe for recipe in recipes("icml") if recipe.row == row)
    (point,) = recipe.grid
    config = recipe.train_config(point, 1, Options(epochs=1))
    size, text = config.hidden_size // 10, tmp_path / "words.txt"
    text.write_text("".join(f"a b c {'defg'[n % 4]} h\n" for n in range(400)))
    config = replace(config, corpus=str(text), hidden_size=size, embedding_size=size, quiet=True)
    folder = tmp_path / "work"
    folder.mkdir()
    job = {
        "config": config.to_dict(),
        "record": str(tmp_path / "record.json"),
        "samples": (2,),
        "about": {},
    }
    run_job(job, folder, lambda status: None)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["finished"] and not record["diverged"] and len(record["history"]) == 1
    assert record["final"]["mean_path"]["test"] < 50 and record["final"]["averaged"]
