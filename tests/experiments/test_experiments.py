"""Recipes, records, and what is rendered from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.cli import main
from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS
from noisin_pyro.experiments.progress import Tally, count
from noisin_pyro.experiments.recipe import EXPERIMENTS, Options, Recipe, recipes
from noisin_pyro.experiments.reproduce import render, reproduce
from noisin_pyro.experiments.runner import Failure
from noisin_pyro.experiments.store import best_point, due, planned, run_of
from noisin_pyro.experiments.summary import summarise_row
from noisin_pyro.experiments.tables import comparison, details, provenance
from noisin_pyro.text.corpora import load_corpus
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig

RESULTS = Path(__file__).resolve().parents[2] / "results" / "reproduce"
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


def path(recipe: Recipe, options: Options) -> Path:
    return run_of(recipe, next(iter(recipe.grid)), 1, options, Path("x")).path


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


def test_runs_that_differ_have_records_of_their_own() -> None:
    options = Options()
    runs = [
        run_of(recipe, point, seed, options, Path("x"))
        for experiment in ("table2", "table3", "spread", "samples")
        for recipe in recipes(experiment, options)
        for point in recipe.grid
        for seed in (1, 2)
    ]
    assert len({run.path for run in runs}) == len(runs)
    recipe = runs[0].recipe
    for other in (Options(epochs=2), Options(precision="bf16-mixed")):
        assert path(recipe, other) != path(recipe, options)
    # What the numbers should not depend on does not name the record.
    for same in (Options(device="cpu"), Options(data_dir="/data"), Options(grid=1, seeds=1)):
        assert path(recipe, same) == path(recipe, options)


def test_a_new_option_leaves_the_names_of_records_alone() -> None:
    """Only what differs from the defaults is in the digest; this pins one."""
    recipe = next(r for r in recipes("table2", Options()) if r.row == "1-sigmoid-noisin")
    assert path(recipe, Options()).as_posix() == (
        "x/ptb/table2/1-sigmoid-noisin/multiplicative-0.5.seed1.a94473a1.json"
    )


def ways(test: float) -> list[dict[str, Any]]:
    """Averaging by every variant and number, none of which pays."""
    return [
        {"readout": readout, "antithetic": antithetic, "samples": count, "test": test + 1.0,
         "gain": -0.01, "error": 0.004}
        for readout, antithetic in VARIANTS
        for count in NUMBERS
    ]  # fmt: skip


def fake(run: Any, valid: float, test: float, **changes: Any) -> None:
    """A finished record."""
    record = {
        "schema": 1,
        "point": run.point,
        "seed": run.seed,
        "config": {"precision": run.config.precision, "layers": run.config.layers},
        "corpus": {"sha256": "0" * 64},
        "versions": {"torch": "2", "pyro-ppl": "1", "commit": "c" * 40},
        "hardware": {"processor": "P", "threads": 1},
        "history": [
            {
                "epoch": 1,
                "train_perplexity": 300.0,
                "valid_perplexity": valid + 5,
                "spread": [0.5] * run.config.layers,
            },
            {
                "epoch": 2,
                "train_perplexity": 200.0,
                "valid_perplexity": valid,
                "spread": [0.4] * run.config.layers,
            },
        ],
        "best_epoch": 2,
        "finished": True,
        "diverged": None,
        "final": {
            "mean_path": {"valid": valid, "test": test, "samples": 0},
            "averaged": [
                {"valid": valid + 1, "test": test + 1, "samples": count}
                for count in run.recipe.samples
            ],
            **({"averaging": ways(test)} if run.recipe.averaging else {}),
        },
        "timing": {"seconds": 60.0},
        "wall_seconds": 120.0,
        **changes,
    }
    run.path.parent.mkdir(parents=True, exist_ok=True)
    run.path.write_text(json.dumps(record))


def row_of(name: str) -> Recipe:
    return next(r for r in recipes("table2", Options()) if r.row == name)


def test_the_choice_is_made_on_validation_and_only_once_the_grid_is_done(tmp_path: Path) -> None:
    recipe, options = row_of("1-tanh-noisin"), Options(grid=3, seeds=3)
    first = planned(recipe, options, tmp_path)
    assert [(run.point, run.seed) for run in first] == [
        ("multiplicative-0.5", 1), ("multiplicative-1.0", 1), ("additive-0.2", 1)
    ]  # fmt: skip
    fake(first[0], valid=150, test=100)  # the best on test, but not on validation
    fake(first[1], valid=140, test=145)
    assert best_point(recipe, options, tmp_path) is None
    assert [run.point for run in due([recipe], options, tmp_path)] == ["additive-0.2"]
    fake(first[2], valid=160, test=150)
    assert best_point(recipe, options, tmp_path) == "multiplicative-1.0"
    left = due([recipe], options, tmp_path)
    assert [(run.point, run.seed) for run in left] == [
        ("multiplicative-1.0", 2),
        ("multiplicative-1.0", 3),
    ]
    fake(left[0], valid=141, test=146)
    fake(left[1], valid=142, test=147)
    assert due([recipe], options, tmp_path) == []
    row = summarise_row(recipe, options, tmp_path)
    assert (
        str(row.perplexity("test")) == "146.0 ± 1.0"
        and str(row.perplexity("test", 16)) == "147.0 ± 1.0"
    )


def test_first_seeds_come_first(tmp_path: Path) -> None:
    options = Options(grid=1, seeds=2)
    rows = [row_of("1-tanh-none"), row_of("1-tanh-noisin")]
    fake(planned(rows[0], options, tmp_path)[0], 150, 140)
    left = due(rows, options, tmp_path)
    assert [(run.recipe.row, run.seed) for run in left] == [
        ("1-tanh-noisin", 1),
        ("1-tanh-none", 2),
    ]


def test_what_is_left_is_counted_from_the_records(tmp_path: Path) -> None:
    options, rows = Options(grid=2, seeds=3), [row_of("1-tanh-noisin"), row_of("1-tanh-none")]
    assert count(rows, options, tmp_path) == Tally(done=0, total=4 + 3)
    first, second = planned(rows[0], options, tmp_path)
    fake(first, 150, 140)
    assert count(rows, options, tmp_path) == Tally(1, 7, seconds=60.0, epochs=2.0)
    # A row whose grid diverged has no later seeds, and a run of no epoch says nothing of the time.
    for run in (first, second):
        fake(run, 150, 140, diverged="nan", final=None, history=[], best_epoch=0)
    assert count(rows, options, tmp_path) == Tally(done=2, total=2 + 3)


def test_the_time_left_falls_while_runs_go_on() -> None:
    tally = Tally(done=1, total=4, seconds=600.0, epochs=10.0)
    assert Tally(done=0, total=4).seconds_left([5.0], jobs=2) is None
    assert tally.seconds_left([], jobs=2) == 900.0
    assert tally.seconds_left([5.0, 2.5], jobs=2) == 600.0 * 2.25 / 2
    assert (
        tally.seconds_left([math.inf, 12.0], jobs=2) == 300.0
    )  # longer than the average, not over
    # The last run has one worker, however many there might be.
    assert Tally(3, 4, 600.0, 10.0).seconds_left([5.0], jobs=4) == 300.0


def test_a_run_that_was_cut_off_is_due_again(tmp_path: Path) -> None:
    recipe, options = row_of("1-tanh-none"), Options(seeds=1)
    (run,) = planned(recipe, options, tmp_path)
    fake(run, 150, 140, finished=False, final=None)
    assert due([recipe], options, tmp_path) == [run]
    assert "150.0, unfinished after epoch 2" in details([summarise_row(recipe, options, tmp_path)])


def test_a_diverged_entry_is_not_chosen(tmp_path: Path) -> None:
    recipe, options = row_of("1-tanh-noisin"), Options(grid=2, seeds=1)
    good, bad = planned(recipe, options, tmp_path)
    fake(bad, 100, 100, diverged="the loss became nan", final=None)
    fake(good, 150, 140)
    assert best_point(recipe, options, tmp_path) == good.point
    assert due([recipe], options, tmp_path) == []
    fake(good, 150, 140, diverged="the loss became nan", final=None)
    assert best_point(recipe, options, tmp_path) is None
    assert due([recipe], options, tmp_path) == []


def test_seeds_that_are_missing_or_diverged_are_told(tmp_path: Path) -> None:
    """Such a cell is no mean over the wanted seeds, and a block is over only without the former."""
    options = Options(grid=1, seeds=3)
    nan: dict[str, Any] = {"diverged": "the loss became nan", "final": None}
    rows = [row_of(f"1-tanh-{suffix}") for suffix in ("noisin", "noisin-star", "dropout", "none")]
    outcomes: Any = ([{}, {}, {}], [{}, {}, nan], [nan], [{}, {}])
    for recipe, value, seeds in zip(rows, (130, 130, 130, 150), outcomes):
        for seed, changes in enumerate(seeds, 1):
            point = recipe.points(options)[0]
            fake(run_of(recipe, point, seed, options, tmp_path), 140, value + seed, **changes)

    def cells() -> list[str]:
        table = comparison([summarise_row(recipe, options, tmp_path) for recipe in rows])
        return [cell.strip() for cell in table.splitlines()[2].split("|")[2:-1]]

    told = ["**132.0 ± 1.0** (131.9)", "**131.5 ± 0.7** (1 of 3 diverged) (140.9)"]
    told += ["diverged (138.3)"]
    assert cells() == [*told, "151.5 ± 0.7 (2 of 3 seeds) (141.4)", "not all run"]
    fake(run_of(rows[3], "plain", 3, options, tmp_path), 140, 153)
    assert cells() == [*told, "152.0 ± 1.0 (141.4)", "NOISIN*, NOISIN"]
    fake(run_of(rows[3], "plain", 2, options, tmp_path), 140, 190, finished=False, final=None)
    fake(run_of(rows[3], "plain", 3, options, tmp_path), 140, 190, **nan)
    assert cells() == [*told, "151.0 (1 of 3 seeds, 1 of 3 diverged) (141.4)", "not all run"]
    line = details([summarise_row(rows[3], options, tmp_path)]).splitlines()[2]
    assert "| plain | 1 of 3 seeds, 1 of 3 diverged |" in line


def test_the_tables(tmp_path: Path) -> None:
    options = Options(grid=1, seeds=2)
    values = {"noisin": 130.0, "noisin-star": 129.0, "dropout": 131.0, "none": 150.0}
    for suffix, value in values.items():
        recipe = row_of(f"1-tanh-{suffix}")
        for seed in (1, 2):
            fake(
                run_of(recipe, next(iter(recipe.grid)), seed, options, tmp_path), 140, value + seed
            )
    for suffix in ("noisin", "none"):
        recipe = row_of(f"2-tanh-{suffix}")
        fake(run_of(recipe, next(iter(recipe.grid)), 1, options, tmp_path), 140, values[suffix])
    text = render("table2", options, tmp_path)
    lines = {line.split("|")[1].strip(): line for line in text.split("\n\n")[0].splitlines()}
    assert lines["1 layer, tanh"] == (
        "| 1 layer, tanh | **131.5 ± 0.7** (131.9) | **130.5 ± 0.7** (140.9) | 132.5 ± 0.7 (138.3) "
        "| 151.5 ± 0.7 (141.4) | NOISIN*, NOISIN |"
    )
    assert lines["2 layers, tanh"] == (
        "| 2 layers, tanh | 130.0 (1 of 2 seeds) (140.5) | – (142.4) | – (165.2) "
        "| 150.0 (1 of 2 seeds) (157.9) | not all run |"
    )
    # The paper's values are of another text.
    with pytest.raises(ValueError, match="holds no record of table2 with these options"):
        render("table2", replace(options, corpus="pydoc"), tmp_path)
    assert not list(tmp_path.rglob("*.md"))


def test_minutes_are_those_of_training(tmp_path: Path) -> None:
    """A run's wall time begins anew when it resumes; the time of its epochs is kept."""
    recipe, options = row_of("1-tanh-none"), Options(seeds=1)
    (run,) = planned(recipe, options, tmp_path)
    fake(run, 140, 130, timing={"seconds": 600.0}, wall_seconds=60.0)
    head, _, line = details([summarise_row(recipe, options, tmp_path)]).splitlines()
    held = dict(zip(head.split(" | "), line.split(" | ")))
    assert held["minutes of training"] == "10.0"


def test_every_record_is_counted_once(tmp_path: Path) -> None:
    options, rows = Options(grid=2, seeds=3), [row_of("1-tanh-noisin"), row_of("1-tanh-none")]
    for _ in range(2):  # the grids, then the chosen entries' other seeds
        for run in due(rows, options, tmp_path):
            fake(run, 140, 130)
    text = provenance([summarise_row(recipe, options, tmp_path) for recipe in rows])
    assert text.endswith(f": {len(list(tmp_path.rglob('*.json')))} records")


@pytest.mark.parametrize("experiment", ["figure2", "spread", "samples"])
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_pictures_come_from_records_alone(experiment: str, tmp_path: Path) -> None:
    options = Options(grid=1, seeds=1)
    for recipe in recipes(experiment, options):
        (run,) = planned(recipe, options, tmp_path)
        history = [
            {"epoch": e, "train_perplexity": 300.0 / e, "valid_perplexity": 200.0 + e,
             "spread": [1.0 / e, 2.0 / e][: run.config.layers]}
            for e in (1, 2)
        ]  # fmt: skip
        fake(run, 140, 130, history=history)
    render(experiment, options, tmp_path, write=True)
    (picture,) = tmp_path.rglob("*.png")
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    render(experiment, options, tmp_path, write=True)
    assert picture.read_bytes() == first
    others = {"train_perplexity": 250.0, "valid_perplexity": 150.0}
    fake(run, 150, 100, history=[{**row, **others} for row in history])
    if experiment == "samples":
        record = json.loads(run.path.read_text())
        record["final"]["averaging"][3]["gain"] = 0.02
        run.path.write_text(json.dumps(record))
    render(experiment, options, tmp_path, write=True)
    assert picture.read_bytes() != first


@pytest.mark.parametrize("experiment", ["figure2", "spread", "samples"])
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_a_picture_of_what_diverged_at_once(experiment: str, tmp_path: Path) -> None:
    options = Options(grid=1, seeds=1)
    for recipe in recipes(experiment, options):
        (run,) = planned(recipe, options, tmp_path)
        fake(run, 140, 130, history=[], best_epoch=0, diverged="the loss became nan", final=None)
    assert "diverged" in render(experiment, options, tmp_path, write=True)
    assert list(tmp_path.rglob("*.png"))


def test_table_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs Penn Treebank and WikiText-2 in ../shared/data")
    assert main(["reproduce", "table1", "--data_dir", str(data), "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| tokens, train | 929,589 | 929,590 | 2,088,628 | 2,088,628 |" in text
    assert "| tokens, valid | 73,760 | 73,761 | 217,646 | 217,646 |" in text
    assert "| tokens, test | 82,430 | 82,431 | 245,569 | 245,569 |" in text
    assert "| vocabulary | 10,000 | 10,000 | 33,278 | 33,278 |" in text
    assert "| OoV rate | 4.8% | 4.8% | 2.6% | 2.6% |" in text
    assert (tmp_path / "table1.md").read_text() == text


def test_table_1_of_another_text_has_a_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "table1.md").write_text("the paper's")
    text, _ = reproduce("table1", Options(corpus="hmm"), results=tmp_path)
    assert (tmp_path / "hmm" / "table1.md").read_text() == text + "\n"
    assert (tmp_path / "table1.md").read_text() == "the paper's"


def test_the_last_line_says_what_is_shown(tmp_path: Path) -> None:
    given = Options(
        "pydoc", "data", epochs=2, grid=1, seeds=1, device="cpu", precision="bf16-mixed"
    )
    for options, last in (
        (Options(), ""),
        (given, " --corpus pydoc --epochs 2 --grid 1 --seeds 1 --precision bf16-mixed"),
    ):
        recipe = recipes("table2", options)[0]
        for run in planned(recipe, options, tmp_path):
            fake(run, 140, 130)
        parts = render("table2", options, tmp_path).split("\n\n")
        assert parts[3:] == [f"Rendered by `noisin reproduce table2{last}`."]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("table2 --rows 1-tahn-none", "unknown row '1-tahn-none' of table2; the known ones are"),
        ("table2 --jobs 0", "jobs must be at least 1, got 0"),
        (
            "table2 --corpus nowhere",
            "corpus must be one of hmm, ptb, pydoc, wikitext-2 or the path of a text file or "
            "folder, got 'nowhere', which does not exist",
        ),
        pytest.param(
            "table2 --corpus hmm --device cuda",
            "device cuda needs one that torch can see, got none; use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (
            "table2 --corpus hmm --results /dev/null",
            "/dev/null must be a folder that can be written to (File exists); give --results "
            "another",
        ),
        (
            "table2 --corpus hmm --results . --work /dev/null/work",
            "/dev/null/work must be a folder that can be written to (Not a directory); give --work",
        ),
        ("table1 --corpus hmm --results /dev/null", "/dev/null/hmm must be a folder that can"),
        ("table2 --seeds 0", "seeds must be at least 1, got 0"),
        ("table2 --render true --results nowhere", "nowhere holds no record of table2"),
        ("table9", "unknown experiment 'table9'; the known ones are table1, table2"),
    ],
)
def test_refusals(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_text_that_changed_under_its_name_is_refused(tmp_path: Path) -> None:
    """Its records would stand for a text that is no longer there; rendering does not look."""
    text, results = tmp_path / "words.txt", tmp_path / "results"
    text.write_text("a b c\n" * 60)
    options = Options(corpus=str(text), grid=1, seeds=1)
    recipe = next(r for r in recipes("table2", options) if r.row == "1-tanh-none")
    (run,) = planned(recipe, options, results)
    was = load_corpus(str(text)).sha256
    fake(run, 140, 130, corpus={"sha256": was})
    folders: dict[str, Any] = {"results": results, "work": tmp_path / "work"}
    assert reproduce("table2", options, ["1-tanh-none"], **folders)[1] == []
    text.write_text("a b d\n" * 60)
    now = load_corpus(str(text)).sha256
    with pytest.raises(ValueError, match=f"{was}, but .*words.txt is now one with {now}; give --r"):
        reproduce("table2", options, ["1-tanh-none"], **folders)
    text.unlink()
    assert "130.0" in reproduce("table2", options, train=False, **folders)[0]


def test_failures_are_told_where_there_is_nothing_to_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned(row_of("1-tanh-none"), Options(), tmp_path)[0]
    monkeypatch.setattr(
        "noisin_pyro.experiments.reproduce.run_all", lambda *_, **__: [Failure(run, "it broke")]
    )
    with pytest.raises(SystemExit, match="1"):
        main(["reproduce", "table2", "--results", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out == "no run of table2 has a record yet\n"
    assert said.err == "noisin: table2/1-tanh-none plain seed 1 failed: it broke\n"


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    recipe, options = row_of("1-tanh-none"), Options(seeds=1)
    (run,) = planned(recipe, options, tmp_path)
    run.path.parent.mkdir(parents=True)
    run.path.write_text("{")
    with pytest.raises(ValueError, match="seed1.*json is no record of a run, it is not JSON"):
        due([recipe], options, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 2}, "schema: 1 was expected"),
        ({"history": 3}, "history: 3 is not of type 'array'"),
        ({"history": [{"epoch": 1}]}, r"history\[0\]: '.*' is a required property"),
        ({"final": {"mean_path": {}, "averaged": []}}, "final.mean_path: 'valid' is a required"),
        ({"final": None}, "is finished, but has neither final nor diverged"),
        ({"best_epoch": 3}, "best_epoch 3 of 2 in its history"),
        ({"config": {"precision": "32", "layers": 2}}, "no spread for each of its layers"),
        ({"timing": {"seconds": "1"}}, "timing.seconds: '1' is not of type 'number'"),
        ({"versions": None}, "versions: None is not of type 'object'"),
    ],
)
def test_a_damaged_record_is_named_and_the_other_rows_go_on(
    changes: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = Options(grid=1, seeds=1)
    for suffix in ("noisin", "none"):
        fake(planned(row_of(f"1-tanh-{suffix}"), options, tmp_path)[0], 140, 130)
    (run,) = planned(row_of("1-tanh-none"), options, tmp_path)
    fake(run, 140, 130, **changes)
    with pytest.raises(ValueError, match=rf"{run.path.name} .*{sentence}"):
        run.record()
    asked = ["reproduce", "table2", "--grid=1", "--seeds=1", "--render=true"]
    with pytest.raises(SystemExit, match="1"):
        main([*asked, "--results", str(tmp_path)])
    printed = capsys.readouterr()
    assert "| 1 layer, tanh | 130.0 (131.9) |" in printed.out
    assert printed.err.startswith("noisin: table2/1-tanh-none failed: ")
    assert printed.err.count("\n") == 1
    fake(run, 140, 131)  # it is read again once it is mended
    assert run.finished


def test_a_record_without_the_averages_that_are_asked_for_is_named(tmp_path: Path) -> None:
    """Their number is not in a record's name, so that a recipe may come to ask for more."""
    options = Options(grid=1, seeds=1)
    noisy, none = (
        replace(row_of(f"1-tanh-{suffix}"), samples=(8, 16, 32)) for suffix in ("noisin", "none")
    )
    (run,) = planned(noisy, options, tmp_path)
    final = {
        "mean_path": {"valid": 140.0, "test": 130.0, "samples": 0},
        "averaged": [{"valid": 140.0, "test": 130.0, "samples": 16}],
    }
    fake(run, 140, 130, final=final)
    with pytest.raises(ValueError, match=r"seed1.*json lacks the averages over 8, 32 samples that"):
        due([noisy], options, tmp_path)
    # What diverged has none, nor has a deterministic RNN.
    fake(run, 140, 130, diverged="the loss became nan", final=None)
    fake(planned(none, options, tmp_path)[0], 140, 130, final={**final, "averaged": []})
    assert due([noisy, none], options, tmp_path) == []


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda p: p.stem)
def test_committed_records_are_those_of_the_recipes(file: Path) -> None:
    """A recipe that changes orphans its records; then they are to be run again, or removed."""
    record = json.loads(file.read_text(encoding="utf-8"))
    config = record["config"]
    found = next(r for r in EVERY if r.records == record["recipe"] == r.name)
    options = Options(
        corpus=config["corpus"], epochs=config["epochs"], precision=config["precision"]
    )
    (recipe,) = (r for r in recipes(found.name.split("/")[0], options) if r.name == found.name)
    run = run_of(recipe, record["point"], record["seed"], options, RESULTS)
    assert run.path == file and run.record() == record
    held = TrainConfig.from_dict(config)
    assert not held.differences(run.config)
    assert record["diverged"] or torch.tensor(record["history"][-1]["train_nats"]).isfinite()


def test_reproduce_renders_without_training(tmp_path: Path) -> None:
    options = Options(grid=1, seeds=1)
    for recipe in recipes("figure2", options):
        fake(run_of(recipe, next(iter(recipe.grid)), 1, options, tmp_path), 140, 130)
    text, failures = reproduce("figure2", options, results=tmp_path, train=False)
    assert not failures and (tmp_path / "ptb" / "figure2.md").read_text() == text + "\n"
