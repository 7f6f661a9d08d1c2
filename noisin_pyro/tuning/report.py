"""Renders a study: a table and a picture of its trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisin_pyro.experiments.markdown import markdown_table
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.plots import two_panels
from noisin_pyro.training.printable import escape_markdown
from noisin_pyro.tuning.space import suggest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = [
    "describe_options",
    "describe_result",
    "lowest_so_far",
    "study_table",
    "trial_row",
    "write_picture",
]

COLORS = {"multiplicative": "C0", "additive": "C1"}


def trial_row(trial: FrozenTrial, names: tuple[str, ...], base: TrainConfig) -> dict[str, Any]:
    """The entry of a record for a trial that has ended.

    Args:
        trial: the trial.
        names: the options that the study searches.
        base: the configuration of the study, which has the other options.
    """
    from optuna.trial import FixedTrial

    epochs = trial.intermediate_values
    whole = trial.state.name == "COMPLETE"
    diverged = trial.user_attrs.get("diverged")
    return {
        "number": trial.number,
        "ended": "finished" if whole else "diverged" if diverged else "pruned",
        "options": suggest(FixedTrial(trial.params, trial.number), names, base),
        "valid_perplexity": [epochs[epoch] for epoch in sorted(epochs)],
        "lowest": min(epochs.values(), default=math.inf),
        "seconds": trial.user_attrs.get("seconds", 0.0),
        "diverged": diverged,
    }


def describe_options(options: dict[str, Any], names: Sequence[str]) -> str:
    """The values of the searched options, in words.

    Example:
        >>> describe_options({"injection": "additive", "spread": 0.2}, ("injection", "spread"))
        'injection additive, spread 0.2'
    """
    return ", ".join(f"{name} {_value(options[name])}" for name in names)


def describe_result(row: dict[str, Any]) -> str:
    """The result of a trial, in words."""
    epochs = len(row["valid_perplexity"])
    text = f"validation perplexity {_lowest(row):.2f}, {row['ended']} after {epochs} epochs"
    return f"{text} ({row['diverged']})" if row["diverged"] else text


def lowest_so_far(trials: Sequence[dict[str, Any]]) -> list[float]:
    """For each trial, the lowest validation perplexity of the finished ones up to it."""
    values, lowest = [], math.inf
    for row in trials:
        if row["ended"] == "finished":
            lowest = min(lowest, _lowest(row))
        values.append(lowest)
    return values


def study_table(record: dict[str, Any]) -> str:
    """A line for each trial, the finished ones first, by validation perplexity.

    Args:
        record: the record of the study.
    """
    names = record["searched"]
    head = ["trial", "validation perplexity", "epochs", "ended", *names, "seconds"]
    order = sorted(record["trials"], key=lambda row: (row["ended"] != "finished", _lowest(row)))
    lines = []
    for row in order:
        lines.append(
            [
                str(row["number"]),
                f"{_lowest(row):.2f}",
                str(len(row["valid_perplexity"])),
                row["ended"],
                *(escape_markdown(_value(row["options"][name])) for name in names),
                f"{row['seconds']:.0f}",
            ]
        )
    return markdown_table(head, lines)


def write_picture(path: Path, record: dict[str, Any]) -> None:
    """Draws the trials in their order, and by γ or, if γ is not searched, by epoch.

    Args:
        path: the file to write.
        record: the record of the study.
    """
    config, trials = record["config"], record["trials"]
    title = (
        f"{record['corpus']['name']}: {config['layers']}-layer {config['cell']}, "
        f"{config['hidden_size']} units, {len(trials)} trials"
    )
    with two_panels(path, title) as (left, right):
        _in_order(left, trials)
        if "spread" in record["searched"]:
            _against_spread(right, trials, config["injection"])
        else:
            for row in trials:
                values = row["valid_perplexity"]
                color = "C0" if row["ended"] == "finished" else "0.7"
                right.plot(range(1, len(values) + 1), values, color=color, linewidth=0.8)
            right.set_xlabel("epoch")
        finite = [value for value in map(_lowest, trials) if math.isfinite(value)]
        for panel in (left, right):
            panel.set_ylabel("lowest validation perplexity")
            if finite:
                panel.set_ylim(0.97 * min(finite), 1.5 * min(finite))


def _in_order(panel: Any, trials: Sequence[dict[str, Any]]) -> None:
    for ended, marker, color in (("finished", "o", "C0"), ("pruned", "x", "0.5")):
        rows = [row for row in trials if row["ended"] == ended]
        numbers, values = [row["number"] for row in rows], [_lowest(row) for row in rows]
        panel.plot(numbers, values, marker, color=color, markersize=4, label=ended)
    best = lowest_so_far(trials)
    panel.step([r["number"] for r in trials], best, where="post", color="C3", label="lowest so far")
    panel.set_xlabel("trial")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_title("Trials in their order; what is above is cut off")


def _against_spread(panel: Any, trials: Sequence[dict[str, Any]], injection: str) -> None:
    for kind, color in COLORS.items():
        for ended, marker in (("finished", "o"), ("pruned", "x")):
            rows = [
                row
                for row in trials
                if row["options"].get("injection", injection) == kind and row["ended"] == ended
            ]
            spreads = [row["options"]["spread"] for row in rows]
            values = [_lowest(row) for row in rows]
            if rows:
                label = kind if ended == "finished" else None
                panel.plot(spreads, values, marker, color=color, markersize=4, label=label)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("γ")
    panel.set_title("By γ and kind of noise; crosses: pruned")


def _lowest(row: dict[str, Any]) -> float:
    """Its lowest validation perplexity; null, if it diverged in its first epoch, is infinite."""
    return math.inf if row["lowest"] is None else float(row["lowest"])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
