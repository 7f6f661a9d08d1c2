"""Markdown tables from records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noisin_pyro.experiments.summary import Figure, Row

__all__ = ["averages", "comparison", "corpora", "details", "provenance"]

_ORDER = ("NOISIN", "NOISIN*", "Dropout", "None")

#: Table 1 of the paper: tokens of each split, vocabulary and out-of-vocabulary rate.
PAPER_CORPORA = {
    "ptb": {
        "train": 929_590, "valid": 73_761, "test": 82_431, "vocabulary": 10_000, "oov_rate": 0.048
    },
    "wikitext-2": {
        "train": 2_088_628, "valid": 217_646, "test": 245_569, "vocabulary": 33_278,
        "oov_rate": 0.026,
    },
}  # fmt: skip


def comparison(rows: Sequence[Row]) -> str:
    """A line for each block and a column for each method, as the paper's Table 2.

    A cell is the test perplexity on the mean path, mean ± standard deviation over seeds, then which
    seeds it lacks, then the paper's value in brackets. Bold is the lowest of a line and what is
    level with it: within twice the standard error of the difference.
    """
    methods = sorted({row.recipe.method for row in rows}, key=_method_order)
    blocks = list(dict.fromkeys(row.recipe.block for row in rows))
    lines = [_line(["", *methods, "lowest"]), _line(["---"] * (len(methods) + 2))]
    for block in sorted(blocks):
        held = {row.recipe.method: row for row in rows if row.recipe.block == block}
        figures = {m: row.figure("test") for m, row in held.items()}
        best = _best({method: figure for method, figure in figures.items() if figure})
        complete = all(method in held and held[method].complete for method in methods)
        cells = []
        for method in methods:
            text = _cell(held[method], bold=method in best) if method in held else "–"
            paper = held[method].recipe.paper if method in held else None
            cells.append(text + (f" ({paper})" if paper else ""))
        lowest = ", ".join(best) or "–"
        lines.append(_line([block, *cells, lowest if complete else "not all run"]))
    return "\n".join(lines)


def _cell(row: Row, samples: int = 0, bold: bool = False) -> str:
    """Test perplexity, and which seeds it lacks."""
    figure = row.figure("test", samples)
    if figure is None:
        return "diverged" if row.hopeless else "–"
    text = f"**{figure}**" if bold else str(figure)
    return f"{text} ({row.shortfall})" if row.shortfall else text


def _best(figures: dict[str, Figure]) -> list[str]:
    """The lowest and what is level with it, in order; nobody wins alone."""
    order = sorted(figures, key=lambda method: figures[method].mean)
    if len(order) < 2:
        return []
    first = figures[order[0]]
    return order[:1] + [method for method in order[1:] if figures[method].level_with(first)]


def details(rows: Sequence[Row]) -> str:
    """A line for each row: what was tried, what was chosen, and what it gave."""
    samples = sorted({count for row in rows for count in row.recipe.samples})[-1:]
    averaged = [f"test, {count} averaged" for count in samples]
    head = ["", "method", "chosen on validation", "seeds", "valid", "test", *averaged]
    head += ["best epoch", "minutes of training", "grid: validation perplexity of its first seed"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in sorted(rows, key=lambda row: (row.recipe.block, _method_order(row.recipe.method))):
        epochs = ", ".join(f"{r['best_epoch']} of {len(r['history'])}" for r in row.records)
        lines.append(
            _line(
                [
                    row.recipe.block,
                    row.recipe.method,
                    row.point or "–",
                    row.shortfall or str(len(row.records)),
                    str(row.figure("valid") or "–"),
                    str(row.figure("test") or "–"),
                    *(str(row.figure("test", count) or "–") for count in samples),
                    epochs or "–",
                    str(row.minutes or "–"),
                    "; ".join(f"{point} {_valid(held)}" for point, held in row.grid.items()),
                ]
            )
        )
    return "\n".join(lines)


def averages(rows: Sequence[Row]) -> str:
    """Test perplexity by the number of noisy RNNs averaged over, beside the mean path."""
    counts = sorted({count for row in rows for count in row.recipe.samples})
    head = ["test perplexity", *(f"S = {count}" for count in counts), "mean path"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        lines.append(_line([row.recipe.method, *(_cell(row, count) for count in [*counts, 0])]))
    return "\n".join(lines)


def _valid(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    values = [row["valid_perplexity"] for row in record["history"]]
    finite = [value for value in values if value is not None]
    best = f"{min(finite):.1f}" if finite else "–"
    if record["diverged"]:
        return f"{best}, diverged"
    return best if record["finished"] else f"{best}, unfinished after epoch {len(values)}"


def provenance(rows: Sequence[Row]) -> str:
    """Hardware, versions and commits of the records, a line for each distinct set."""
    found: dict[str, int] = {}
    for row in rows:
        every = {id(r): r for r in [*row.seeds, *row.grid.values()] if r}
        for record in every.values():
            versions, hardware = record["versions"], record["hardware"]
            device = hardware.get("gpu") or f"{hardware['processor']}, {hardware['threads']} thread"
            text = (
                f"{device}, {record['config']['precision']} precision, torch {versions['torch']}, "
                f"Pyro {versions['pyro-ppl']}, commit {(versions['commit'] or 'unknown')[:9]}"
            )
            found[text] = found.get(text, 0) + 1
    return "\n".join(f"- {text}: {count} records" for text, count in found.items())


def corpora(found: dict[str, dict[str, Any]]) -> str:
    """The paper's Table 1 beside the statistics of the texts at hand."""
    head = ["", *(f"{name} ({whose})" for name in found for whose in ("here", "paper"))]
    lines = [_line(head), _line(["---"] * len(head))]
    for key, title in (
        ("train", "tokens, train"),
        ("valid", "tokens, valid"),
        ("test", "tokens, test"),
        ("vocabulary", "vocabulary"),
        ("oov_rate", "OoV rate"),
    ):
        cells = []
        for name, figures in found.items():
            for held in (figures, PAPER_CORPORA.get(name, {})):
                value = held.get(key)
                rate = key == "oov_rate"
                text = "–" if value is None else f"{value:.1%}" if rate else f"{value:,}"
                cells.append(text)
        lines.append(_line([title, *cells]))
    return "\n".join(lines)


def _method_order(method: str) -> tuple[int, str]:
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), method)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
