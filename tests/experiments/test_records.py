"""Records that are damaged, and those that are committed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.cli import main
from noisin_pyro.experiments.recipe import EXPERIMENTS, Options, recipes
from noisin_pyro.experiments.reproduce import reproduce
from noisin_pyro.experiments.store import due, planned, run_of
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.infinities import with_infinities
from tests.experiments.fakes import fake, row_of

RESULTS = Path(__file__).resolve().parents[2] / "results" / "reproduce"


SIZE = {"precision": "32", "layers": 1}
EVERY = [recipe for experiment in EXPERIMENTS for recipe in recipes(experiment, Options())]


@pytest.mark.parametrize("text", ["{", '{"seed": 1e400}', '{"seed": NaN}'])
def test_a_file_that_is_no_record_is_named(text: str, tmp_path: Path) -> None:
    recipe, options = row_of("1-tanh-none"), Options(seeds=1)
    (run,) = planned(recipe, options, tmp_path)
    run.path.parent.mkdir(parents=True)
    run.path.write_text(text)
    with pytest.raises(ValueError, match="seed1.*json is no record of a run, it is not JSON"):
        due([recipe], options, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 0}, "schema: 1 was expected"),
        ({"schema": 2}, "of version 2, from a newer noisin_pyro, .*; install the newer one, or"),
        ({"config": {**SIZE, "seed": 7}}, "is another run's, with seed 7 and not 1"),
        ({"config": {**SIZE, "cell": "gru"}}, "another run's, with cell 'gru' and not 'rnn_t"),
        ({"config": {**SIZE, "feedback": False}}, "noise_to 'output' and not 'both'"),
        ({"history": 3}, "history: 3 is not of type 'array'"),
        ({"history": [{"epoch": 1}]}, r"history\[0\]: '.*' is a required property"),
        ({"final": {"mean_path": {}, "averaged": []}}, "final.mean_path: 'valid' is a required"),
        ({"final": None}, "is finished, but has neither final nor diverged"),
        ({"best_epoch": 3}, "best_epoch 3 of 2 in its history"),
        ({"best_epoch": 0}, "best_epoch 0 of 2 in its history"),
        ({"config": {"precision": "32", "layers": 2}}, "no spread for each of its layers"),
        ({"timing": {"seconds": "1"}}, "timing.seconds: '1' is not of type 'number'"),
        ({"seed": 10**400}, "it is not JSON or has a number beyond all bounds"),
        ({"timing": {"seconds": -(10**30)}}, "it is not JSON or has a number beyond all bounds"),
        (
            {"final": {"mean_path": {"valid": -1.0, "test": 9.0, "samples": 0}, "averaged": []}},
            "final.mean_path.valid: -1.0 is less than the minimum of 0",
        ),
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


def test_a_folder_in_the_place_of_a_record_is_named_and_the_other_rows_go_on(
    tmp_path: Path,
) -> None:
    rows, options = [row_of("1-tanh-none"), row_of("1-tanh-dropout")], Options(seeds=1)
    for recipe in rows:
        for run in planned(recipe, options, tmp_path):
            fake(run, 140, 130)
    (run,) = planned(rows[0], options, tmp_path)
    run.path.unlink()
    run.path.mkdir()
    text, (failure,) = reproduce("table2", options, results=tmp_path, train=False)
    assert failure.run == rows[0] and "cannot be read (Is a directory); move it" in failure.reason
    assert "Dropout" in text


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
    record = json.loads(file.read_text(encoding="utf-8"), object_hook=with_infinities)
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
