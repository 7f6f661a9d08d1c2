"""The study of averaging: what a run measures, and what its table says."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, LanguageModel, NoisyGRU
from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS, measure_averaging
from noisin_pyro.experiments.job import run
from noisin_pyro.experiments.process import _job
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.reproduce import render
from noisin_pyro.experiments.store import planned, run_of
from noisin_pyro.experiments.summary import summarise_row
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.fit import seeded
from tests.experiments.fakes import fake, ways


def test_every_entry_is_what_evaluate_says() -> None:
    """The largest S of each variant shares its noise with ``evaluate``; gains are to the mean."""
    torch.manual_seed(0)
    noise = Additive(dist.Normal(0.0, 1.0))
    model = LanguageModel(11, NoisyGRU(4, 5, noise=noise, spread=0.5)).double()
    tokens = torch.randint(11, (400,))
    before = torch.random.get_rng_state()
    entries = measure_averaging(model, tokens, seed=3)
    assert (torch.random.get_rng_state() == before).all()
    assert len(entries) == len(VARIANTS) * len(NUMBERS)
    path = evaluate(model, tokens)
    for entry in entries:
        assert entry["gain"] == pytest.approx(path.nats - math.log(entry["test"]), abs=1e-12)
        if entry["samples"] == NUMBERS[-1]:
            options: Any = {name: entry[name] for name in ("readout", "antithetic")}
            with seeded(3):
                fit = evaluate(model, tokens, NUMBERS[-1], **options)
            assert entry["test"] == pytest.approx(fit.perplexity, rel=1e-10)


def test_a_run_records_it(tmp_path: Path) -> None:
    """A training of one epoch; its record is one, and is rendered."""
    draw = random.Random(0)
    words = [f"w{draw.randrange(20)}" + ("\n" if draw.random() < 0.1 else "") for _ in range(4000)]
    text = tmp_path / "words.txt"
    text.write_text(" ".join(words))
    options = Options(corpus=str(text), epochs=1, seeds=1)
    recipe = next(r for r in recipes("samples", options) if r.row == "gru-additive-0.5")
    small = replace(recipe, config={**recipe.config, "embedding_size": 8, "hidden_size": 8})
    (planned_run,) = planned(small, options, tmp_path / "results")
    told: list[dict[str, Any]] = []
    (tmp_path / "work").mkdir()
    run(_job(planned_run), tmp_path / "work", told.append)
    assert told.count({"averaging": 64}) == len(VARIANTS)
    record = planned_run.record()
    assert record and planned_run.finished
    nats = math.log(record["final"]["mean_path"]["test"])  # of the test split, as is what follows
    for entry in record["final"]["averaging"]:
        assert entry["gain"] == pytest.approx(nats - math.log(entry["test"]), abs=1e-9)
    row = summarise_row(small, options, tmp_path / "results")
    for variant in VARIANTS:
        assert list(row.gains(variant)) == list(NUMBERS)
    for lost in ("one", "all"):
        if lost == "one":
            del record["final"]["averaging"][3]
        else:
            del record["final"]["averaging"]
        planned_run.path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="lacks the ways of averaging that samples/gru-addit"):
            planned_run.record()


def test_the_fewest_that_pay(tmp_path: Path) -> None:
    """From there on every S must pay in every seed, by more than two standard errors."""
    options = Options(seeds=2)
    recipe = next(r for r in recipes("samples", options) if r.row == "lstm-additive-1")
    errors = 0.004
    gains = {
        ("noisy", False): [[-1, -1, 0.007, 0.007, 0.007, 0.007]] * 2,  # none clear
        ("noisy", True): [[0.01, -1, 0.01, 0.01, 0.01, 0.01]] * 2,  # 2 pays and 4 does not
        ("mean", False): [[0.01] * 6, [0.01, 0.01, 0.01, 0.007, 0.01, 0.01]],  # not in both seeds
        ("mean", True): [[0.01] * 6] * 2,
    }
    for seed in (1, 2):
        found = ways(50.0)
        for entry in found:
            of_seed = gains[entry["readout"], entry["antithetic"]][seed - 1]
            entry["gain"] = of_seed[NUMBERS.index(entry["samples"])]
            entry["error"], entry["test"] = errors, 50.0 + seed + entry["samples"]
        final = {"mean_path": {"valid": 50.0, "test": 50.0 + seed, "samples": 0}, "averaged": []}
        fake(run_of(recipe, "chosen", seed, options, tmp_path), 50, 50,
             final={**final, "averaging": found})  # fmt: skip
    fewest, values, *_ = render("samples", options, tmp_path).split("\n\n")
    assert "| LSTM, additive 1 | over 64 | 8 | 32 | 2 | 2 |" in fewest.splitlines()
    line = next(line for line in values.splitlines() if line.startswith("| LSTM, additive 1 |"))
    assert line.startswith(
        "| LSTM, additive 1 | 51.5 ± 0.7 | 53.5 ± 0.7 | 59.5 ± 0.7 | 115.5 ± 0.7"
    )
    assert "additive 0.5" not in fewest + values  # without a record
