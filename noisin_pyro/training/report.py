"""Renders a record: the table at the end of a run, metrics as CSV, and curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tabulate import tabulate

from noisin_pyro.atomic import replacing
from noisin_pyro.training.plots import plot_epochs, two_panels

__all__ = ["render_table", "write_curves", "write_metrics"]

NAMES = {"noisin": "NOISIN", "dropout": "dropout", "deterministic": "deterministic"}
STYLES = {
    "noisin": {"color": "C0", "marker": "o", "label": "NOISIN"},
    "dropout": {"color": "C2", "marker": "^", "label": "variational dropout"},
    "deterministic": {"color": "C3", "marker": "s", "label": "deterministic"},
}
COLUMNS = (
    *("train_nats", "train_perplexity", "valid_nats", "valid_perplexity", "spread"),
    *("learning_rate", "tokens_per_second"),
)


def write_metrics(path: Path, models: dict[str, Any]) -> None:
    """Writes one CSV row per model and epoch."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["model", "epoch", *COLUMNS], extrasaction="ignore")
        table.writeheader()
        for label, model in models.items():
            for row, timing in zip(model["history"], model["timing"]["epochs"]):
                spread = " ".join(f"{s:.6g}" for s in row["spread"] if s is not None)
                table.writerow({"model": label, **row, **timing, "spread": spread})


def write_curves(path: Path, record: dict[str, Any]) -> None:
    """Plots training and validation perplexity by epoch, as the paper's Figure 2."""
    config, optimal = record["config"], record["corpus"]["optimal_perplexity"]
    title = (
        f"{record['corpus']['name']}: {config['layers']}-layer {config['cell']}, "
        f"{config['hidden_size']} units"
    )
    with two_panels(path, title) as panels:
        for panel, split in zip(panels, ("valid", "train")):
            for label, model in record["models"].items():
                key = f"{split}_perplexity"
                plot_epochs(panel, model["history"], key, markersize=3, **STYLES[label])
            if optimal and split == "valid":
                panel.axhline(optimal, color="0.4", linestyle=":", label="optimal (test split)")
            panel.set_yscale("log")
            panel.set_ylabel("perplexity")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.tick_params(axis="y", which="minor", labelsize=7)
        panels[0].set_title("Validation, mean path")
        panels[1].set_title("Training, as trained (with noise)")


def render_table(record: dict[str, Any]) -> str:
    """The table that is printed at the end of a run, with a column for each model."""
    models = record["models"].values()
    rows = [*_perplexities(models, "mean_path", "mean path")]
    if any(model["final"]["averaged"] for model in models):
        samples = max(m["final"]["averaged"]["samples"] for m in models if m["final"]["averaged"])
        rows += _perplexities(models, "averaged", f"averaged ({samples} samples)")
    unit = record["corpus"].get("tokens", "words")
    if unit != "words":
        rows += _bits(models, unit.removesuffix("s"))
    rows += [
        ["γ per layer, best epoch", *map(_best_spread, models)],
        ["best epoch of", *(f"{m['best_epoch']} / {len(m['history'])}" for m in models)],
        ["tokens/s", *(f"{m['timing']['tokens_per_second']:,.0f}" for m in models)],
        ["training time", *(f"{m['timing']['seconds']:.0f} s" for m in models)],
    ]
    head = ["perplexity", *(NAMES[label] for label in record["models"])]
    align = ("left", *["right"] * len(models))
    table = tabulate(rows, head, "simple", colalign=align, disable_numparse=True)
    return "\n".join([table, *_notes(record)])


def _perplexities(models: Any, key: str, title: str) -> list[list[str]]:
    finals = [model["final"][key] for model in models]
    return [
        [f"{split}, {title}", *(f"{final[split]:.2f}" if final else "-" for final in finals)]
        for split in ("train", "valid", "test")
    ]


def _bits(models: Any, unit: str) -> list[list[str]]:
    means = [model["final"]["mean_path"]["bits"] for model in models]
    return [
        [f"{split}, bits per {unit}", *(f"{bits[split]:.4f}" for bits in means)]
        for split in ("train", "valid", "test")
    ]


def _best_spread(model: dict[str, Any]) -> str:
    rows = [row for row in model["history"] if row["epoch"] == model["best_epoch"]]
    spread = [s for s in rows[0]["spread"] if s is not None] if rows else []
    return " ".join(f"{s:.3f}" for s in spread) or "-"


def _notes(record: dict[str, Any]) -> list[str]:
    optimal = record["corpus"]["optimal_perplexity"]
    notes = [f"the best possible on this test split is {optimal:.2f}"] if optimal else []
    evaluated, whole = record["train_tokens_evaluated"], record["corpus"]["train"]
    if evaluated < whole:
        notes.append(f"train: the first {evaluated:,} of {whole:,} tokens")
    return notes
