"""What a run leaves for people and programs: record, CSV, plot, table."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from noisin_pyro.text.corpora import Corpus
from noisin_pyro.training.checkpoint import replace_file

__all__ = ["describe_corpus", "environment", "render_table", "write_curves", "write_metrics"]


def environment() -> dict[str, Any]:
    """Versions of the code and its libraries, and the hardware."""
    versions = {"python": platform.python_version()}
    for package in ("noisin-pyro", "torch", "pyro-ppl", "numpy", "lightning-fabric"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"versions": {**versions, "commit": _commit()}, "hardware": hardware}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the checkout the code runs from, if it runs from one."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe_corpus(corpus: Corpus) -> dict[str, Any]:
    """What a record says of its text."""
    return {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "optimal_perplexity": corpus.optimal_perplexity,
        **corpus.statistics(),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes JSON atomically; a figure that is not finite becomes null."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(path: Path, models: dict[str, Any]) -> None:
    """Writes one CSV row per model and epoch."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(
                ["model", "epoch", "train_nats", "train_perplexity", "valid_nats",
                 "valid_perplexity", "spread", "learning_rate", "tokens_per_second"]
            )  # fmt: skip
            for label, model in models.items():
                for row, timing in zip(model["history"], model["timing"]["epochs"]):
                    spread = " ".join("" if s is None else f"{s:.6g}" for s in row["spread"])
                    table.writerow(
                        [label, row["epoch"], row["train_nats"], row["train_perplexity"],
                         row["valid_nats"], row["valid_perplexity"], spread.strip(),
                         row["learning_rate"], timing["tokens_per_second"]]
                    )  # fmt: skip

    replace_file(path, write)


def write_curves(path: Path, record: dict[str, Any]) -> None:
    """Plots training and validation perplexity by epoch, as the paper's Figure 2."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    styles = {
        "noisin": ("C0", "o", "NOISIN"),
        "dropout": ("C2", "^", "variational dropout"),
        "deterministic": ("C3", "s", "deterministic"),
    }
    optimal = record["corpus"]["optimal_perplexity"]
    for panel, split in zip(panels, ("valid", "train")):
        for label, model in record["models"].items():
            color, marker, name = styles[label]
            rows = model["history"]
            epochs = [row["epoch"] for row in rows]
            values = [row[f"{split}_perplexity"] for row in rows]
            panel.plot(epochs, values, color=color, marker=marker, markersize=3, label=name)
        if optimal and split == "valid":
            panel.axhline(optimal, color="0.4", linestyle=":", label="optimal (test split)")
        panel.set_yscale("log")
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel("perplexity")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    panels[0].set_title("Validation, mean path")
    panels[1].set_title("Training, as trained (with noise)")
    config = record["config"]
    figure.suptitle(
        f"{record['corpus']['name']}: {config['layers']}-layer {config['cell']}, "
        f"{config['hidden_size']} units"
    )
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def render_table(record: dict[str, Any]) -> str:
    """The table that ends a run."""
    models = record["models"]
    names = {"noisin": "NOISIN", "dropout": "dropout", "deterministic": "deterministic"}
    lines = [f"{'perplexity':<31}" + "".join(f"{names[label]:>15}" for label in models)]
    for key, title in (("mean_path", "mean path"), ("averaged", "averaged")):
        if not any(model["final"][key] for model in models.values()):
            continue
        for split in ("train", "valid", "test"):
            cells = []
            samples = 0
            for model in models.values():
                held = model["final"][key]
                samples = max(samples, held["samples"] if held else 0)
                cells.append(f"{held[split]:15.2f}" if held else f"{'-':>15}")
            extra = f" ({samples} samples)" if key == "averaged" else ""
            lines.append(f"{split + ', ' + title + extra:<31}" + "".join(cells))
    spreads = [_spread(model) for model in models.values()]
    lines.append(f"{'γ per layer, best epoch':<31}" + "".join(f"{s:>15}" for s in spreads))
    rows: dict[str, list[str]] = {
        "best epoch of": [f"{m['best_epoch']} / {len(m['history'])}" for m in models.values()],
        "tokens/s": [f"{m['timing']['tokens_per_second']:,.0f}" for m in models.values()],
        "training time": [f"{m['timing']['seconds']:.0f} s" for m in models.values()],
    }
    lines += [f"{title:<31}" + "".join(f"{v:>15}" for v in row) for title, row in rows.items()]
    rule = "-" * len(lines[0])
    optimal = record["corpus"]["optimal_perplexity"]
    tail = [f"the best possible on this test split is {optimal:.2f}"] if optimal else []
    part = record["train_tokens_evaluated"]
    whole = record["corpus"]["train"]
    if part < whole:
        tail.append(f"train: the first {part:,} of {whole:,} tokens")
    return "\n".join([lines[0], rule, *lines[1:], rule, *tail])


def _spread(model: dict[str, Any]) -> str:
    rows = [row for row in model["history"] if row["epoch"] == model["best_epoch"]]
    spread = [s for s in rows[0]["spread"] if s is not None] if rows else []
    return " ".join(f"{s:.3f}" for s in spread) or "-"
