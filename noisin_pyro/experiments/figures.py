"""Pictures from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from noisin_pyro.experiments.summary import Row
from noisin_pyro.training.checkpoint import replace_file

__all__ = ["FIGURES"]

_STYLES = ("-", "--", ":", "-.")


def perplexity_by_epoch(rows: Sequence[Row], panels: Any) -> None:
    """Figure 2: training and validation perplexity against epochs, every entry of the grid."""
    curves = [
        (row.recipe.method if len(row.grid) == 1 else f"{row.recipe.method}, {point}", record)
        for row in rows
        for point, record in row.grid.items()
        if record is not None and record["history"]  # one may diverge in its first epoch
    ]
    for panel, split in zip(panels, ("train", "valid")):
        for index, (label, record) in enumerate(curves):
            epochs = [held["epoch"] for held in record["history"]]
            values = [held[f"{split}_perplexity"] for held in record["history"]]
            best = record["best_epoch"]
            panel.plot(epochs, values, color=f"C{index}", label=label)
            panel.plot(epochs[best - 1], values[best - 1], "o", color=f"C{index}")
        panel.set_ylabel("perplexity")
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    if curves:
        lowest = min(min(held["valid_perplexity"] for held in r["history"]) for _, r in curves)
        panels[1].set_ylim(0.97 * lowest, 1.4 * lowest)
    panels[0].set_title("Training, as trained")
    panels[1].set_title("Validation, mean path; dots: best")


def spread_by_epoch(rows: Sequence[Row], panels: Any) -> None:
    """γ per layer, and the validation perplexity that would have stopped it."""
    for index, row in enumerate(rows):
        for record in filter(None, row.grid.values()):
            epochs = [held["epoch"] for held in record["history"]]
            for layer, style in zip(range(record["config"]["layers"]), _STYLES):
                panels[0].plot(
                    epochs,
                    [held["spread"][layer] for held in record["history"]],
                    style,
                    color=f"C{index}",
                    label=f"{row.recipe.method}, layer {layer}",
                )
            panels[1].plot(
                epochs,
                [held["valid_perplexity"] for held in record["history"]],
                color=f"C{index}",
                label=row.recipe.method,
            )
            for panel in panels:
                panel.axvline(record["best_epoch"], color=f"C{index}", linestyle=":", alpha=0.6)
    panels[0].set_ylabel("spread γ")
    panels[0].set_title("Learned γ; dotted: stopped by validation")
    panels[1].set_ylabel("perplexity")
    panels[1].set_title("Validation, mean path")
    for panel in panels:
        panel.set_xlabel("epoch")


def perplexity_by_samples(rows: Sequence[Row], panels: Any) -> None:
    """Averaging S noisy RNNs at test time, above the mean path."""
    for panel, split in zip(panels, ("valid", "test")):
        for index, row in enumerate(rows):
            for record in row.records[:1]:
                averaged = record["final"]["averaged"]
                panel.plot(
                    [held["samples"] for held in averaged],
                    [held[split] for held in averaged],
                    marker="o",
                    markersize=3,
                    color=f"C{index}",
                    label=row.recipe.method,
                )
                mean_path = record["final"]["mean_path"][split]
                panel.axhline(mean_path, color=f"C{index}", linestyle="--")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("noisy RNNs averaged, S")
        panel.set_ylabel("perplexity")
    panels[0].set_title("Validation; dashed: mean path")
    panels[1].set_title("Test; dashed: mean path")


_DRAWINGS: dict[str, Callable[[Sequence[Row], Any], None]] = {
    "figure2": perplexity_by_epoch,
    "spread": spread_by_epoch,
    "samples": perplexity_by_samples,
}

#: The experiments that have a picture.
FIGURES = tuple(_DRAWINGS)


def draw(experiment: str, rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes an experiment's picture as PNG.

    Args:
        experiment: one of :data:`FIGURES`.
        rows: its rows.
        title: what stands above it.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    _DRAWINGS[experiment](rows, panels)
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    # Without a date or a version in it, the same records give the same bytes.
    replace_file(
        path,
        lambda part: figure.savefig(part, format="png", dpi=120, metadata={"Software": None}),
    )
