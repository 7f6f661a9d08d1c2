"""The benchmark compares what it says it compares, and runs."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from noisin_pyro.kernels.onednn import packs

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("variants")


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_all_variants_take_the_same_step(variants: Any, cell: str) -> None:
    """With next to no noise every variant has torch's loss, before and after ten steps of Adam.

    So they run the same weights on the same batch under the same rule. Trace_ELBO and the
    textbook start every step at a state of zero; later losses are compared among them, and among
    those that carry the state.
    """
    setting = variants.Setting(cell, 8, 2, vocabulary=50, unroll=5, batch=4, spread=1e-3)
    steps = {name: variants.build(name, setting) for name in variants.VARIANTS}
    first = {name: float(step()) for name, step in steps.items()}
    assert first == pytest.approx(dict.fromkeys(first, first["torch"]), abs=1e-4)
    later = {name: [float(step()) for _ in range(10)][-1] for name, step in steps.items()}
    assert first["torch"] - later["torch"] > 0.02
    carry = ("torch", "clean", "additive", "multiplicative", "by-hand")
    for name in later:
        reference = "torch" if name in carry else "trace-additive"
        assert later[name] == pytest.approx(later[reference], abs=5e-4), name


def test_noise_is_noise(variants: Any) -> None:
    setting = variants.Setting("lstm", 8, 2, vocabulary=50, unroll=5, batch=4, spread=0.9)
    for name in variants.VARIANTS:
        losses = []
        for seed in (0, 1):
            pyro.set_rng_seed(seed)
            losses.append(float(variants.build(name, setting)()))
        assert (losses[0] == losses[1]) == (name in ("torch", "clean")), name


def test_it_runs(variants: Any, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    command = [sys.executable, str(BENCHMARKS / "step_cost.py"), "--quick", "--rounds", "2"]
    parts = ["steps", "particles", "evaluation", "growth", "loop"]
    done = subprocess.run(
        [*command, "--json", str(path), "--parts", *parts],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(parts) <= record.keys()
    (row,) = record["steps"][:1]
    assert set(row["variants"]) == {*variants.VARIANTS, "products"}
    assert row["variants"]["torch"]["ratio"] == 1
    for name, measured in row["variants"].items():  # no claim about speed: the machine may be busy
        figures = [value for value in measured.values() if isinstance(value, float)]
        assert figures and all(value > 0 and math.isfinite(value) for value in figures), name
        assert measured["ratio_q1"] <= measured["ratio"] <= measured["ratio_q3"], name


def test_alternatives_are_compared(tmp_path: Path) -> None:
    """Each variant learns, and the record names all that README's table asks for."""
    path = tmp_path / "record.json"
    command = [sys.executable, str(BENCHMARKS / "alternatives.py"), "--quick", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(path.read_text(encoding="utf-8"))["variants"]
    committed = json.loads((ROOT / "results/alternatives/cpu.json").read_text(encoding="utf-8"))
    assert set(committed["variants"]) - set(measured) <= {"bayesian-torch"}
    for name, row in measured.items():
        assert row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"], name


def test_alternatives_train(variants: Any) -> None:
    """Every variant's loss falls on a batch that it reads again and again."""
    alternatives = pytest.importorskip("alternatives")
    torch.manual_seed(0)
    for name, step in alternatives.alternatives(alternatives.SMALL).items():
        losses = [float(step()) for _ in range(60)]
        assert sum(losses[-10:]) < sum(losses[:10]) - 0.1, name


def test_alternatives_regularise(variants: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws at random, so that its cost is that of what it is called; at rate 0 it is torch's.

    A mask that is computed and not read would be neither.
    """
    alternatives = pytest.importorskip("alternatives")
    by_seed = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        steps = alternatives.alternatives(alternatives.SMALL)
        torch.manual_seed(seed)
        by_seed.append({name: float(step()) for name, step in steps.items() if name != "textbook"})
    assert by_seed[0] == by_seed[1]
    assert {name for name in by_seed[0] if by_seed[0][name] == by_seed[2][name]} == {"torch"}
    monkeypatch.setattr(alternatives, "RATE", 0.0)
    steps = alternatives.alternatives(alternatives.SMALL)
    for name in ("dropout between layers", "weight drop by hand", "variational dropout by hand",
                 "zoneout by hand"):  # fmt: skip
        assert float(steps[name]()) == pytest.approx(float(by_seed[0]["torch"]), rel=1e-5), name


def test_peak_memory_is_that_of_a_fresh_process() -> None:
    setting = {"cell": "tanh", "hidden": 8, "layers": 1, "vocabulary": 50, "unroll": 5, "batch": 4}
    job = json.dumps({"variant": "additive", "setting": setting, "device": "cpu", "n": 1})
    command = [sys.executable, str(BENCHMARKS / "step_cost.py"), "--peak", job]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout)
    assert peak["peak"] > peak["above_imports"] >= 0


def test_the_products_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    products = pytest.importorskip("products")
    if not packs(torch.eye(2)):
        pytest.skip("needs a torch with oneDNN")
    monkeypatch.setattr(products, "SHAPES", {"small": (5, 20, 100)})
    monkeypatch.setattr(products, "ROUNDS", 1)
    products.main()  # which compares the results too
    lines = re.findall(r"torch +\d+ µs  oneDNN +\d+ µs  ours +\d+ µs", capsys.readouterr().out)
    assert len(lines) == 3


def test_recurrences_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The record has what the table of docs/speed.md asks for, and each variant is what it says."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recurrences = pytest.importorskip("recurrences")
    path = tmp_path / "record.json"
    command = [sys.executable, str(BENCHMARKS / "recurrences.py"), "--quick", "--rounds", "2"]
    subprocess.run([*command, "--json", str(path)], capture_output=True, check=True)
    record = json.loads(path.read_text(encoding="utf-8"))
    committed = json.loads((ROOT / "results/recurrences/cpu.json").read_text(encoding="utf-8"))
    assert set(record) == set(committed)
    assert [row["cell"] for row in record["speed"]] == list(recurrences.CELLS)
    for row in record["speed"]:
        assert set(row["variants"]) == set(committed["speed"][0]["variants"])
        for measured in row["variants"].values():
            assert 0 < measured["ratio_q1"] <= measured["ratio"] <= measured["ratio_q3"]


def test_busy_cores_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks run, and a setting reaches the process that is measured."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    busy = pytest.importorskip("busy")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with busy.others(1):
        times = [busy.measured(network, "OMP_NUM_THREADS=1", 0.01) for network in busy.NETWORKS]
    assert all(0 < seconds < 60 for seconds in times)
    seen: list[dict[str, str]] = []

    def run(*_: Any, env: dict[str, str], **__: Any) -> Any:
        seen.append(env)
        return subprocess.CompletedProcess([], 0, stdout="[1.0]")

    monkeypatch.setattr(busy.subprocess, "run", run)
    for setting in busy.SETTINGS:
        busy.measured("torch", setting, 0.01)
    found = [[env.get(name) for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")] for env in seen]
    assert found == [[None, None], ["1000", None], [None, "1"]]


def torch_has_bfloat16() -> bool:
    """Whether torch's own LSTM runs under autocast here, which takes AVX-512."""
    lstm = torch.nn.LSTM(8, 8)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            lstm(torch.zeros(3, 2, 8))
    except RuntimeError:
        return False
    return True


def test_half_precision_starts_each_variant_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss, before any step, is that of the same weights; γ = 1 makes it another."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    half_precision = pytest.importorskip("half_precision")
    tokens = torch.randint(50, (20 * 36,))
    monkeypatch.setattr(half_precision, "PARTS", 1)
    found = {
        name: half_precision.first_epoch(network, halves, tokens, 50, seed=1)
        for name, (network, halves) in half_precision.VARIANTS.items()
        if (network, halves) != ("torch", True) or torch_has_bfloat16()
    }
    assert len(found) >= 4
    first, *others = (part for (part,) in found.values())
    assert all(part == pytest.approx(first, rel=1e-2) for part in others)
    record = json.loads((ROOT / "results" / "half-precision" / "ptb.json").read_text())
    assert list(record["perplexity"]) == list(half_precision.VARIANTS)


def test_recurrences_are_as_noisy_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recurrences = pytest.importorskip("recurrences")
    for cell in recurrences.CELLS:
        for variant in ("torch", *recurrences.NOISES):
            step = recurrences.build(variant, cell, 4, "cpu")
            before = torch.get_rng_state()
            step()
            drew = not torch.equal(before, torch.get_rng_state())
            assert drew == (variant in ("additive", "multiplicative")), (cell, variant)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kills = pytest.importorskip("kills")
    path = tmp_path / "record.json"
    asked = ["--json", str(path), "--cells", "rnn_tanh", "--kills", "2", "--optimizers"]
    for optimizer in ("sgd", "sgd", "asgd"):  # a row that is there is replaced
        kills.main([*asked, optimizer])
    first, second = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (first["optimizer"], second["optimizer"]) == ("sgd", "asgd")
    for row in (first, second):
        assert sum(row["kills"].values()) == 2 and row["trainings"] >= 1
        assert row["identical"] == row["trainings"] and row["failed"] == 0
