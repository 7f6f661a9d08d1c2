"""The configuration of a training run: what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from noisin_pyro.training.config import TrainConfig


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variational_dropout": 1.0}, r"variational_dropout must lie in \[0, 1\), got 1.0"),
        ({"variational_dropout": 0.2, "noise": "laplace"}, "must be 0 unless noise is none"),
        ({"variational_dropout": 0.2, "dropout_output": 0.1}, "every other dropout 0"),
        ({"variational_dropout": 0.2, "learn_spread": True}, "learn_spread false"),
        ({"dropout_words": -0.1}, r"dropout_words must lie in \[0, 1\), got -0.1"),
        (
            {"noise_to": "sometimes"},
            "unknown noise_to 'sometimes'; the known ones are both, output",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{"noise": "none", **changes})
