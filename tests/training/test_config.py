"""The configuration of a training run: what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisin_pyro.noise.families import FAMILIES
from noisin_pyro.training.config import NOISES, TrainConfig


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variational_dropout": 1.0}, r"variational_dropout must lie in \[0, 1\), got 1.0"),
        ({"variational_dropout": 0.2, "noise": "laplace"}, "must be 0 unless noise is none"),
        ({"variational_dropout": 0.2, "dropout_output": 0.1}, "every other dropout 0"),
        ({"variational_dropout": 0.2, "learn_spread": True}, "learn_spread false"),
        (
            {"dropout": 0.2, "dropout_output": 0.1},
            "dropout must be 0 unless dropout_input",
        ),
        ({"dropout": 0.2, "variational_dropout": 0.1}, "every other dropout 0"),
        ({"weight_drop": 1.0}, r"weight_drop must lie in \[0, 1\), got 1.0"),
        ({"weight_drop": 0.5, "cell": "mingru"}, "weight_drop needs a cell with recurrent weights"),
        ({"zoneout": 1.0}, r"zoneout must be .* in \[0, 1\), or two of them, for h and c, got 1.0"),
        ({"zoneout": [0.1, 0.2], "cell": "gru"}, r"in \[0, 1\), got \[0.1, 0.2\]"),
        ({"zoneout": [0.1, 0.2, 0.3]}, r"got \[0.1, 0.2, 0.3\]"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"train_tokens": -1}, "train_tokens must be at least 0, which takes all, got -1"),
        ({"dropout_words": -0.1}, r"dropout_words must lie in \[0, 1\), got -0.1"),
        (
            {"noise_to": "sometimes"},
            "unknown noise_to 'sometimes'; the known ones are both, output",
        ),
        ({"noise": "none", "learn_spread": True}, "learn_spread needs a noise whose spread it"),
        ({"spread": 10**400}, "spread must be a number or a list of numbers, got 1000"),
        ({"spread": -0.3}, "spread must be positive and finite, got -0.3; use noise none"),
        ({"dropout_layers": 0.1}, "dropout_layers lies between layers, of which there is 1"),
    ],
)
def test_refusals(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{"noise": "none", **changes})


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As in a loop over ``numpy.linspace``: the run was refused where its file was written."""
    noise = {"class_path": "torch.distributions.StudentT", "init_args": {"df": np.int64(5)}}
    config = TrainConfig(
        hidden_size=np.int64(8),
        spread=[np.float64(0.5)],
        noise=noise,
        cell=np.str_("gru"),
    )
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == replace(config, out=str(tmp_path))
    assert type(config.cell) is str


def test_the_names_of_noises_are_those_of_the_library() -> None:
    assert set(NOISES) == {"none", *FAMILIES}


def test_without_the_extra() -> None:
    """It was a ModuleNotFoundError about yaml, which names no extra."""
    script = "import sys; sys.modules['yaml'] = None; import noisin_pyro.training.config"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == 'ImportError: TrainConfig needs PyYAML; run pip install "noisin-pyro[lm]"'
