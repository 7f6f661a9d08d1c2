"""Which record is whose, which runs are still to be made, and how long they will take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from noisin_pyro.experiments import store
from noisin_pyro.experiments.progress import Tally, count
from noisin_pyro.experiments.recipe import Options, Recipe, recipes
from noisin_pyro.experiments.store import best_point, due, planned, run_of
from noisin_pyro.experiments.summary import summarise_row
from noisin_pyro.experiments.tables import details
from tests.experiments.fakes import fake, row_of


def path(recipe: Recipe, options: Options) -> Path:
    return run_of(recipe, next(iter(recipe.grid)), 1, options, Path("x")).path


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


def test_a_text_has_the_same_records_under_each_spelling_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version told them apart, and what it has trained is not trained again."""

    def place(corpus: str) -> str:
        options = Options(corpus=corpus)
        recipe = next(r for r in recipes("table2", options) if r.row == "1-tanh-none")
        return run_of(recipe, next(iter(recipe.grid)), 1, options, tmp_path).path.as_posix()

    assert place("texts/t.txt") == place("./texts//t.txt") == place("texts/t.txt/")
    different = {place(c) for c in ("ptb", "./ptb", "hf:me/it", "me/it", "a/it", "b/it", "/b/it")}
    assert len(different) == 7
    with monkeypatch.context() as older:
        older.setattr(store, "_normal", lambda corpus: corpus)
        own = place("./t.txt")
        Path(own).parent.mkdir(parents=True)
        Path(own).touch()
    assert place("./t.txt") == own != place("t.txt")


def test_a_new_option_leaves_the_names_of_records_alone() -> None:
    """Only what differs from the defaults is in the digest; this pins one."""
    recipe = next(r for r in recipes("table2", Options()) if r.row == "1-sigmoid-noisin")
    assert path(recipe, Options()).as_posix() == (
        "x/ptb/table2/1-sigmoid-noisin/multiplicative-0.5.seed1.a94473a1.json"
    )


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
