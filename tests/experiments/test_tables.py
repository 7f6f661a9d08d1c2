"""Tables and pictures, rendered from records alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.cli import main
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.reproduce import render, reproduce
from noisin_pyro.experiments.store import due, planned, run_of
from noisin_pyro.experiments.summary import summarise_row
from noisin_pyro.experiments.tables import comparison, details, provenance
from tests.experiments.fakes import fake, row_of
from tests.text.corpora import published_folder


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
    assert held["seconds per epoch, fastest"] == "–"
    epochs = [{"seconds": 40.0}, {"seconds": 12.34}]
    fake(run, 140, 130, timing={"seconds": 600.0, "epochs": epochs})
    line = details([summarise_row(recipe, options, tmp_path)]).splitlines()[2]
    assert dict(zip(head.split(" | "), line.split(" | ")))["seconds per epoch, fastest"] == "12.3"


def test_every_record_is_counted_once(tmp_path: Path) -> None:
    options, rows = Options(grid=2, seeds=3), [row_of("1-tanh-noisin"), row_of("1-tanh-none")]
    for _ in range(2):  # the grids, then the chosen entries' other seeds
        for run in due(rows, options, tmp_path):
            fake(run, 140, 130)
    text = provenance([summarise_row(recipe, options, tmp_path) for recipe in rows])
    assert text.endswith(f": {len(list(tmp_path.rglob('*.json')))} records")


@pytest.mark.parametrize("experiment", ["figure2", "spread", "samples", "regularisers"])
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
    picture = tmp_path / recipes(experiment, options)[0].folder / f"{experiment}.png"
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    render(experiment, options, tmp_path, write=True)
    assert picture.read_bytes() == first
    others = {"train_perplexity": 250.0, "valid_perplexity": 150.0}
    run = planned(recipes(experiment, options)[0], options, tmp_path)[0]
    history = [{**row, "spread": [0.5] * run.config.layers} for row in history]
    fake(run, 150, 100, history=[{**row, **others} for row in history])
    if experiment == "samples":
        record = json.loads(run.path.read_text())
        record["final"]["averaging"][3]["gain"] = 0.02
        run.path.write_text(json.dumps(record))
    render(experiment, options, tmp_path, write=True)
    assert picture.read_bytes() != first


def test_perplexities_beyond_all_bounds(tmp_path: Path) -> None:
    """They are null in a record, and infinite in a table; they are never the lowest."""
    options = Options(grid=2, seeds=1)
    for recipe in recipes("figure2", options):
        for number, run in enumerate(planned(recipe, options, tmp_path)):
            fake(run, 140, 130)
            record = json.loads(run.path.read_text())
            record["history"][0]["valid_perplexity"] = None
            if number == 0 and len(recipe.grid) > 1:
                record["history"][1]["valid_perplexity"] = None
                record["final"]["mean_path"].update(valid=None, test=None)
            run.path.write_text(json.dumps(record))
    noisy = summarise_row(recipes("figure2", options)[0], options, tmp_path)
    assert noisy.point == list(noisy.grid)[1]
    assert "multiplicative-0.5 inf" in render("figure2", options, tmp_path, write=True)
    assert list(tmp_path.rglob("*.png"))


def test_an_infinite_perplexity_is_told(tmp_path: Path) -> None:
    """A seed with one was left out of the mean of the others, and a row of one was a dash."""
    options = Options(grid=1, seeds=3)
    found = {
        "noisin": (math.inf, 130, 131),
        "noisin-star": (129, 130, 131),
        "dropout": (math.inf, math.inf, math.inf),
        "none": (150, 151, 152),
    }
    for suffix, tests in found.items():
        recipe = row_of(f"1-tanh-{suffix}")
        for seed, test in enumerate(tests, 1):
            run = run_of(recipe, recipe.points(options)[0], seed, options, tmp_path)
            fake(run, 140, test)
    assert render("table2", options, tmp_path).splitlines()[2] == (
        "| 1 layer, tanh | inf (131.9) | **130.0 ± 1.0** (140.9) | inf (138.3) "
        "| 151.0 ± 1.0 (141.4) | NOISIN* |"
    )


@pytest.mark.parametrize("experiment", ["figure2", "spread", "samples", "regularisers"])
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_a_picture_of_infinite_perplexities(experiment: str, tmp_path: Path) -> None:
    """Averages of noisy RNNs may have them too; their records were refused."""
    options = Options(grid=1, seeds=1)
    for recipe in recipes(experiment, options):
        (run,) = planned(recipe, options, tmp_path)
        fake(run, math.inf, math.inf)
    text = render(experiment, options, tmp_path, write=True)
    assert "| inf |" in text and "nan" not in text
    assert list(tmp_path.rglob("*.png"))


def test_each_text_has_its_own_table_and_picture(tmp_path: Path) -> None:
    """Rendering one text with other options leaves the table of another as it is."""
    once, thrice = Options(grid=1, seeds=1), Options(grid=1, seeds=3)
    for recipe in recipes("regularisers"):
        for run in planned(recipe, once if recipe.corpus == "ptb" else thrice, tmp_path):
            fake(run, 140, 130)
    both, _ = reproduce("regularisers", thrice, results=tmp_path, train=False)
    tables = {text: tmp_path / text / "regularisers.md" for text in ("pydoc", "ptb")}
    assert both.strip() == "\n\n".join(table.read_text().strip() for table in tables.values())
    assert "1-layer GRU" in tables["pydoc"].read_text()
    assert "1-layer GRU" not in tables["ptb"].read_text()
    assert "1 of 3 seeds" in tables["ptb"].read_text()
    before = tables["pydoc"].read_text()
    one, _ = reproduce("regularisers", once, ["lstm-ptb-none"], results=tmp_path, train=False)
    assert one.strip() == tables["ptb"].read_text().strip()
    assert "1 of 3 seeds" not in one and "Weight drop" in one
    assert tables["pydoc"].read_text() == before
    assert len(list(tmp_path.rglob("*.png"))) == 2


@pytest.mark.parametrize("experiment", ["figure2", "spread", "samples", "regularisers"])
@pytest.mark.filterwarnings("ignore:a learned spread without a floor")
def test_a_picture_of_what_diverged_at_once(experiment: str, tmp_path: Path) -> None:
    options = Options(grid=1, seeds=1)
    for recipe in recipes(experiment, options):
        (run,) = planned(recipe, options, tmp_path)
        fake(run, 140, 130, history=[], best_epoch=0, diverged="the loss became nan", final=None)
    assert "diverged" in render(experiment, options, tmp_path, write=True)
    assert list(tmp_path.rglob("*.png"))


def test_table_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = published_folder("ptb").parent
    assert published_folder("wikitext-2").parent == data
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
