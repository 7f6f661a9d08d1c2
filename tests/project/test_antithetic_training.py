"""The benchmark of antithetic particles runs, and compares at equal cost."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "antithetic.py"


def test_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--cell", "tanh", "--seed", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    records = {
        path.name.split(".")[1]: json.loads(path.read_text(encoding="utf-8"))
        for path in tmp_path.glob("*.json")
    }
    epochs = {name: len(record["history"]) for name, record in records.items()}
    assert epochs == {"one": 4, "independent": 2, "pair": 2}  # four passes over the text each
    first, last = records["one"]["gradient_noise"]
    assert (first["epoch"], last["epoch"]) == (1, 4)
    for row in (first, last):
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in records)
        assert row["pair"] < row["independent"] < row["one"]
