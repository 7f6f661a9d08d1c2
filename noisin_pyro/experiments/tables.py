"""Markdown tables from records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from noisin_pyro.experiments.averaging import NUMBERS, VARIANTS
from noisin_pyro.experiments.markdown import markdown_table
from noisin_pyro.experiments.summary import Gain, MeanStd, Row
from noisin_pyro.training.printable import escape_markdown

__all__ = ["PAPER_CORPORA", "averages", "comparison", "corpora", "details", "provenance"]

#: The columns of the paper's Table 2; other methods follow them.
_METHODS = ("NOISIN", "NOISIN*", "Dropout", "None")

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

    A cell is the test perplexity on the mean path, mean ± standard deviation over seeds, then how
    many seeds are missing or diverged, then the paper's value in brackets. Bold is the lowest of a
    line and what is level with it, within twice the standard error of the difference; a single
    seed is never bold.
    """
    methods = sorted({row.recipe.method for row in rows}, key=_method_rank)
    lines = []
    for block in sorted({row.recipe.block for row in rows}):
        by_method = {row.recipe.method: row for row in rows if row.recipe.block == block}
        lowest = _lowest(by_method)
        complete = all(method in by_method and by_method[method].complete for method in methods)
        cells = []
        for method in methods:
            row = by_method.get(method)
            paper = f" ({row.recipe.paper})" if row and row.recipe.paper else ""
            cells.append((_cell(row, bold=method in lowest) if row else "–") + paper)
        last = (", ".join(lowest) or "–") if complete else "not all run"
        lines.append([block, *cells, last])
    return markdown_table(["", *methods, "lowest"], lines)


def _cell(row: Row, samples: int = 0, bold: bool = False) -> str:
    """Test perplexity, and how many seeds are missing or diverged."""
    value = row.perplexity("test", samples)
    if value is None:
        return "diverged" if row.hopeless else "–"
    text = f"**{value}**" if bold and value.count > 1 else str(value)  # one seed is no winner
    return f"{text} ({row.shortfall})" if row.shortfall else text


def _lowest(rows: dict[str, Row]) -> list[str]:
    """The method with the lowest perplexity and those level with it; none if there is only one."""
    values: dict[str, MeanStd] = {}
    for method, row in rows.items():
        value = row.perplexity("test")
        if value is not None and math.isfinite(value.mean):
            values[method] = value
    if len(values) < 2:
        return []
    first, *others = sorted(values, key=lambda method: values[method].mean)
    return [first, *(method for method in others if values[method].level_with(values[first]))]


def details(rows: Sequence[Row]) -> str:
    """A line for each row: the chosen hyper-parameter, the results, and the whole grid."""
    samples = sorted({count for row in rows for count in row.recipe.samples})[-1:]
    averaged = [f"test, {count} averaged" for count in samples]
    head = ["", "method", "chosen on validation", "seeds", "valid", "test", *averaged]
    head += ["best epoch", "minutes of training", "seconds per epoch, fastest"]
    head += ["grid: validation perplexity of its first seed"]
    lines = []
    for row in sorted(rows, key=lambda row: (row.recipe.block, _method_rank(row.recipe.method))):
        epochs = (f"{r['best_epoch']} of {len(r['history'])}" for r in row.records)
        over_samples = (row.perplexity("test", count) for count in samples)
        cells = [
            row.point,
            row.shortfall or len(row.records),
            *(row.perplexity("valid"), row.perplexity("test"), *over_samples),
            *(", ".join(epochs), row.minutes, _seconds(row.seconds_per_epoch)),
        ]
        grid = "; ".join(f"{point} {_valid(record)}" for point, record in row.grid.items())
        texts = ("–" if cell in (None, "") else str(cell) for cell in cells)
        lines.append([row.recipe.block, row.recipe.method, *texts, grid])
    return markdown_table(head, lines)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def averages(rows: Sequence[Row]) -> str:
    """Averaging at test time: the number of noisy RNNs that it needs, then test perplexities.

    In the first table a cell is the smallest S such that S noisy RNNs, and every larger measured
    number of them, are better than the mean path in every seed, by more than twice the paired
    standard error. Rows without a record are left out.
    """
    names = list(VARIANTS.values())
    shown = (NUMBERS[0], 8, NUMBERS[-1])
    fewest, values = [], []
    for row in rows:
        if not any(row.grid.values()):
            continue  # not begun
        setting = f"{row.recipe.block}, {row.recipe.method}"
        gains = [row.gains(variant) for variant in VARIANTS]
        fewest.append([setting, *(_fewest(gain) for gain in gains), _seeds(row)])
        cells = [_cell(row), *(str(g[n].perplexity) if g else "–" for g in gains for n in shown)]
        values.append([setting, *cells])
    head = ["perplexity", "mean path", *(f"{name}: {n}" for name in names for n in shown)]
    return "\n\n".join(
        [
            markdown_table(["fewest noisy RNNs that pay", *names, "seeds"], fewest),
            markdown_table(head, values),
        ]
    )


def _fewest(gains: dict[int, Gain]) -> str:
    """The smallest S such that S and every larger number of noisy RNNs is a clear gain."""
    if not gains:
        return "–"
    paying: list[int] = []
    for count in sorted(gains, reverse=True):
        if not gains[count].clear:
            break
        paying.append(count)
    return str(paying[-1]) if paying else f"over {max(gains)}"


def _seeds(row: Row) -> str:
    return row.shortfall or str(len(row.records))


def _valid(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    values = [row["valid_perplexity"] for row in record["history"]]
    best = f"{min(values):.1f}" if values else "–"
    if record["diverged"]:
        return f"{best}, diverged"
    return best if record["finished"] else f"{best}, unfinished after epoch {len(values)}"


def provenance(rows: Sequence[Row]) -> str:
    """Hardware, versions and commits of the records, a line for each distinct set."""
    counts: Counter[str] = Counter()
    for row in rows:
        records = {id(r): r for r in [*row.seeds, *row.grid.values()] if r}  # each once
        for record in records.values():
            versions, hardware = record["versions"], record["hardware"]
            device = hardware.get("gpu") or f"{hardware['processor']}, {hardware['threads']} thread"
            counts[
                f"{device}, {record['config']['precision']} precision, torch {versions['torch']}, "
                f"Pyro {versions['pyro-ppl']}, commit {(versions['commit'] or 'unknown')[:9]}"
            ] += 1
    return "\n".join(
        f"- {escape_markdown(text)}: {n} record{'s' if n > 1 else ''}" for text, n in counts.items()
    )


def corpora(statistics: dict[str, dict[str, Any]]) -> str:
    """The paper's Table 1 beside the statistics of the corpora, by their names."""
    columns = [(s, PAPER_CORPORA.get(name, {})) for name, s in statistics.items()]
    head = [
        "",
        *(
            f"{escape_markdown(name)} ({source})"
            for name in statistics
            for source in ("here", "paper")
        ),
    ]
    titles = {
        "train": "tokens, train",
        "valid": "tokens, valid",
        "test": "tokens, test",
        "vocabulary": "vocabulary",
        "oov_rate": "OoV rate",
    }
    return markdown_table(
        head,
        [
            [title, *(_statistic(values.get(key)) for pair in columns for values in pair)]
            for key, title in titles.items()
        ],
    )


def _statistic(value: int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"


def _method_rank(method: str) -> tuple[int, str]:
    return (_METHODS.index(method) if method in _METHODS else len(_METHODS), method)
