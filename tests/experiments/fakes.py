"""Records that no training wrote, for the tests of what reads them."""

from __future__ import annotations

import math
from typing import Any

from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS
from noisin_pyro.experiments.recipe import Options, Recipe, recipes
from noisin_pyro.training.record import write_record


def ways(test: float) -> list[dict[str, Any]]:
    """Averaging by every variant and number, none of which pays."""
    return [
        {"readout": readout, "antithetic": antithetic, "samples": count, "test": test + 1.0,
         "gain": -0.01 if math.isfinite(test) else math.nan, "error": 0.004}
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
    write_record(run.path, record)


def row_of(name: str) -> Recipe:
    return next(r for r in recipes("table2", Options()) if r.row == name)
