"""The benchmark of long sequences compares what it says it compares, and runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro import NoisyMinGRU

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_readable_loop_is_the_same_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark: Any = pytest.importorskip("long_sequences")
    rnn = NoisyMinGRU(3, 4)
    x = torch.randn(300, 2, 3)
    scanned, _ = rnn(x)
    rnn.cell = benchmark.Readable()
    torch.testing.assert_close(rnn(x)[0], scanned)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark: Any = pytest.importorskip("long_sequences")
    path = tmp_path / "record.json"
    command = [sys.executable, str(BENCHMARKS / "long_sequences.py"), "--quick", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text(encoding="utf-8"))
    for row in record["speed"]:
        assert row["variants"]["lstm"]["ratio"] == 1
        assert tuple(row["variants"]) == benchmark.VARIANTS
        assert all(math.isfinite(measured["ratio"]) for measured in row["variants"].values())
