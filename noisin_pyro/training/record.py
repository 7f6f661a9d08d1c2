"""Makes and writes the record of a training, a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import replacing
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.perplexity import perplexity
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.environment import environment
from noisin_pyro.training.infinities import with_infinities
from noisin_pyro.training.progress import Progress

__all__ = [
    "SCHEMA",
    "describe_training",
    "environment",
    "new_record",
    "results_before",
    "write_record",
]

SCHEMA = 1  # the version of the format of records


def new_record(
    config: TrainConfig,
    corpus: Corpus,
    omit: Collection[str] = ("resume", "quiet"),
    **about: Any,
) -> dict[str, Any]:
    """A record before the first epoch: configuration, corpus, versions and hardware.

    Args:
        config: the run.
        corpus: its corpus.
        omit: options that the record leaves out.
        about: further entries.
    """
    return {
        "schema": SCHEMA,
        **about,
        "config": config.to_dict(*omit),
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "tokens": corpus.vocabulary.tokens,
            "optimal_perplexity": corpus.optimal_perplexity,
            **corpus.statistics(),
        },
        **environment(),
    }


def describe_training(progress: Progress, corpus: Corpus, batch_size: int) -> dict[str, Any]:
    """The entries for a model: its history by epoch, the best epoch, and the timing."""
    tokens = (len(corpus.train) // batch_size - 1) * batch_size
    seconds = [row["seconds"] for row in progress.history]
    best = min(progress.history, key=lambda row: row["valid"], default={"epoch": 0})
    return {
        **({"changes": progress.changes} if progress.changes else {}),
        "history": [
            {
                "epoch": row["epoch"],
                "train_nats": row["train"],
                "train_perplexity": perplexity(row["train"]),
                "valid_nats": row["valid"],
                "valid_perplexity": perplexity(row["valid"]),
                "spread": row["spread"],
                "learning_rate": row["learning_rate"],
            }
            for row in progress.history
        ],
        "best_epoch": best["epoch"],
        "finished": progress.finished,
        "timing": {
            "seconds": sum(seconds),
            "tokens_per_second": tokens * len(seconds) / max(sum(seconds), 1e-9),
            "epochs": [{"seconds": s, "tokens_per_second": tokens / max(s, 1e-9)} for s in seconds],
        },
    }


def results_before(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The final perplexities in a run's former record that still hold, by the model's label.

    Those of a finished model are the same again if its history is, so a resumed run need not
    measure them anew, which takes minutes. Other versions may measure otherwise.

    Args:
        path: the former record, if there is one.
        record: the new one, without models.

    Returns:
        For each model of the former record its ``history`` and ``final``.
    """
    try:
        before = json.loads(path.read_bytes(), object_hook=with_infinities)
        same = all(before[key] == record[key] for key in ("corpus", "versions"))
        models = before["models"].items() if same else ()
        return {name: model for name, model in models if model["finished"] and "final" in model}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or no record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes JSON atomically; a number that is not finite becomes null."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
