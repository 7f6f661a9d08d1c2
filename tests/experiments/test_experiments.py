"""``noisin reproduce`` without a training: what it renders, what it refuses, what it tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.cli import main
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.reproduce import reproduce
from noisin_pyro.experiments.runner import Failure
from noisin_pyro.experiments.store import planned, run_of
from noisin_pyro.text.corpora import load_corpus
from tests.experiments.fakes import fake, row_of


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("table2 --rows 1-tahn-none", "unknown row '1-tahn-none' of table2; the known ones are"),
        ("table2 --rows ,", "rows names no row, got ','; leave it out to train all"),
        ("table2 --epochs 2147483648", "epochs must be below 2**31, got 2147483648"),
        ("table2 --jobs 0", "jobs must be at least 1, got 0"),
        (
            "table2 --corpus nowhere",
            "corpus must be one of enwik8, hmm, ptb, pydoc, text8, wikitext-103, wikitext-2 or the "
            "path of a text file or folder, got 'nowhere', which does not exist",
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
        ("table1 --rows x", "table1 has no rows to choose, got 'x'; leave out --rows"),
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


def test_records_that_may_only_be_read_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advice was to give another folder, which would have no records."""
    options = Options(grid=1, seeds=1)
    for recipe in recipes("figure2", options):
        fake(run_of(recipe, next(iter(recipe.grid)), 1, options, tmp_path), 140, 130)
    files = set(tmp_path.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    text, _ = reproduce("figure2", options, results=tmp_path, train=False)
    assert "130.0" in text and set(tmp_path.rglob("*")) == files
    told = capsys.readouterr().err
    assert told == f"noisin: {tmp_path} cannot be written to; the tables are not saved\n"


def test_reproduce_renders_without_training(tmp_path: Path) -> None:
    options = Options(grid=1, seeds=1)
    for recipe in recipes("figure2", options):
        fake(run_of(recipe, next(iter(recipe.grid)), 1, options, tmp_path), 140, 130)
    text, failures = reproduce("figure2", options, results=tmp_path, train=False)
    assert not failures and (tmp_path / "ptb" / "figure2.md").read_text() == text + "\n"
