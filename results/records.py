"""Helpers of the tables in this folder: reading a record, a table, and the machines of records."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from noisin_pyro.experiments.markdown import markdown_table
from noisin_pyro.training.infinities import with_infinities

HERE = Path(__file__).resolve().parent

table = partial(markdown_table, rule="---")


def load(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(
        path.read_text(encoding="utf-8"), object_hook=with_infinities
    )
    return record


def machines(records: list[dict[str, Any]]) -> str:
    """The hardware and versions of some records, each distinct set once."""
    kinds: dict[str, list[str]] = {}
    for r in records:
        processors = kinds.setdefault(
            f"{r['hardware']['threads']} thread(s), torch {r['versions']['torch']}, Python "
            f"{r['versions']['python']}",
            [],
        )
        processor = r["hardware"].get("gpu", r["hardware"]["processor"])
        if processor not in processors:
            processors.append(processor)
    return "; ".join(f"{' or '.join(names)}, {rest}" for rest, names in sorted(kinds.items()))
