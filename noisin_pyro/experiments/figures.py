"""Draws the figures of the experiments from their records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS
from noisin_pyro.experiments.summary import Row
from noisin_pyro.sites import Readout
from noisin_pyro.training.plots import plot_epochs

__all__ = ["FIGURES"]

_LINES = ("-", "--", ":", "-.")  # by layer


def perplexity_by_epoch(rows: Sequence[Row], panels: Any) -> None:
    """Figure 2: training and validation perplexity by epoch, a curve for each entry of a grid."""
    curves = [
        (row.recipe.method if len(row.grid) == 1 else f"{row.recipe.method}, {point}", record)
        for row in rows
        for point, record in row.grid.items()
        if record is not None and record["history"]  # one may diverge in its first epoch
    ]
    for panel, split in zip(panels, ("train", "valid")):
        key = f"{split}_perplexity"
        panel.set_xlabel("epoch")
        panel.set_ylabel("perplexity")
        for index, (label, record) in enumerate(curves):
            best = record["history"][record["best_epoch"] - 1]
            plot_epochs(panel, record["history"], key, color=f"C{index}", label=label)
            panel.plot([best["epoch"]], [best[key]], "o", color=f"C{index}")
    if curves:
        values = [row["valid_perplexity"] for _, r in curves for row in r["history"]]
        lowest = min(values)
        if math.isfinite(lowest):
            panels[1].set_ylim(0.97 * lowest, 1.4 * lowest)
    panels[0].set_title("Training, as trained")
    panels[1].set_title("Validation, mean path; dots: best")


def spread_by_epoch(rows: Sequence[Row], panels: Any) -> None:
    """γ of each layer and validation perplexity by epoch; a dotted line marks the best epoch."""
    for index, row in enumerate(rows):
        color, method = f"C{index}", row.recipe.method
        for record in filter(None, row.grid.values()):
            for layer, line in zip(range(record["config"]["layers"]), _LINES):
                history = [{**epoch, "γ": epoch["spread"][layer]} for epoch in record["history"]]
                label = f"{method}, layer {layer}"
                plot_epochs(panels[0], history, "γ", linestyle=line, color=color, label=label)
            history = record["history"]
            plot_epochs(panels[1], history, "valid_perplexity", color=color, label=method)
            for panel in panels:
                panel.axvline(record["best_epoch"], color=color, linestyle=":", alpha=0.6)
    panels[0].set_ylabel("spread γ")
    panels[0].set_title("Learned γ; dotted: stopped by validation")
    panels[1].set_ylabel("perplexity")
    panels[1].set_title("Validation, mean path")
    for panel in panels:
        panel.set_xlabel("epoch")


def gain_by_samples(rows: Sequence[Row], panels: Any) -> None:
    """Gain of averaging over the mean path: a thin line for each setting, a thick one the mean."""
    readouts: tuple[Readout, ...] = ("noisy", "mean")
    for panel, readout in zip(panels, readouts):
        for color, antithetic in (("C0", False), ("C1", True)):
            gains = [row.gains((readout, antithetic)) for row in rows]
            curves = [[gain.mean for gain in by_count.values()] for by_count in gains if by_count]
            for curve in curves:
                panel.plot(NUMBERS, curve, color=color, linewidth=0.7, alpha=0.5)
            if curves:
                means = [sum(values) / len(values) for values in zip(*curves)]
                label = VARIANTS[readout, antithetic].split(", ")[1]
                panel.plot(NUMBERS, means, color=color, linewidth=2.5, marker="o", label=label)
        panel.axhline(0.0, color="black", linestyle="--", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xlim(NUMBERS[0] / 1.2, 1.2 * NUMBERS[-1])  # also if no gain is finite
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_ylim(-0.12, 0.06)
        panel.set_xlabel("noisy RNNs averaged, S")
        panel.set_ylabel("gain on the mean path, nats per token")
    panels[0].set_title("Emission reads z; thick: mean of settings")
    panels[1].set_title("Emission reads h; thick: mean of settings")


def perplexity_and_cost(rows: Sequence[Row], panels: Any) -> None:
    """Test perplexity of each method, mean ± standard deviation, and seconds per epoch."""
    methods = list(dict.fromkeys(row.recipe.method for row in rows))
    blocks = list(dict.fromkeys(row.recipe.block for row in rows))
    for index, block in enumerate(blocks):
        style = {"color": f"C{index}", "marker": "os^D"[index % 4], "linestyle": ""}
        done = [row for row in rows if row.recipe.block == block and row.perplexity("test")]
        places = [methods.index(row.recipe.method) for row in done]
        values = [row.perplexity("test") for row in done]
        heights = [value.mean for value in values if value]
        spreads = [0.0 if math.isnan(value.std) else value.std for value in values if value]
        panels[0].errorbar(heights, places, xerr=spreads, **style)
        panels[1].plot(
            [row.seconds_per_epoch or math.nan for row in done], places, label=block, **style
        )
    for panel in panels:
        panel.set_yticks(range(len(methods)), methods, fontsize=7)
        panel.set_ylim(len(methods) - 0.5, -0.5)
    panels[1].set_yticklabels([])
    panels[0].set_xlabel("perplexity")
    panels[0].set_title("Test, mean path")
    panels[1].set_xlabel("seconds")
    panels[1].set_xlim(left=0)
    panels[1].set_title("One epoch of training, the fastest")


#: By experiment, the function that draws its figure on two panels.
FIGURES: dict[str, Callable[[Sequence[Row], Any], None]] = {
    "figure2": perplexity_by_epoch,
    "spread": spread_by_epoch,
    "samples": gain_by_samples,
    "regularisers": perplexity_and_cost,
}
