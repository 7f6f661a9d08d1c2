"""The benchmark of tight bounds trains what it says it trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    command = [sys.executable, str(BENCHMARKS / "tight_bounds.py"), "--json", str(path)]
    done = subprocess.run(
        [*command, "--epochs", "2", "--seeds", "2", "--characters", "900"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text(encoding="utf-8"))
    assert list(record["methods"]) == ["none", "fixed", "noisin", "importance", "filter"]
    first = {}
    for name, method in record["methods"].items():
        assert method["title"] in done.stdout
        assert [run["seed"] for run in method["runs"]] == [1, 2]
        one, other = (run["valid"] for run in method["runs"])
        assert len(one) == 2 and one != other
        first[name] = one
        for run in method["runs"]:
            learns = name in ("noisin", "importance", "filter")
            assert (run["spread"][-1] < 1.0) == (learns or name == "none")
    assert len({tuple(valid) for valid in first.values()}) == len(first)  # five ways of training
