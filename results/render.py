"""Renders the figures in README.md from the records in this folder.

``python results/render.py`` rewrites what stands between the markers; ``--check`` only compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def runs() -> str:
    """One table over all runs: the noisy model and its deterministic twin side by side."""
    head = (
        "| run | model | valid | test | test, 16 samples averaged | best epoch | tokens/s |\n"
        "|---|---|---|---|---|---|---|"
    )
    records = {path.parent.name: load(path) for path in sorted(HERE.glob("*/record.json"))}
    rows = [row for name, record in records.items() for row in run_rows(name, record)]
    notes = [hardware(name, record) for name, record in records.items()]
    return "\n".join([head, *rows, "", *notes])


def load(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def run_rows(name: str, record: dict[str, Any]) -> list[str]:
    rows = []
    for label, model in record["models"].items():
        final = model.get("final") or {"mean_path": None, "averaged": None}  # still training
        mean, averaged = final["mean_path"], final["averaged"]
        epochs = len(model["history"])
        valid = min(row["valid_perplexity"] for row in model["history"])
        cells = [
            f"[{name}](results/{name}/record.json)",
            describe(label, record["config"]),
            f"{valid:.1f}",
            f"{mean['test']:.1f}" if mean else "not yet",
            f"{averaged['test']:.1f}" if averaged else "",
            f"{model['best_epoch']} of {epochs}" + ("" if model["finished"] else ", unfinished"),
            f"{model['timing']['tokens_per_second']:,.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def describe(label: str, config: dict[str, Any]) -> str:
    if label == "deterministic":
        return "deterministic"
    spread = f"γ = {config['spread']:g}" + (" at the start" if config["learn_spread"] else "")
    return f"NOISIN, {config['injection']} {config['noise']}, {spread}"


def hardware(name: str, record: dict[str, Any]) -> str:
    config, versions, machine = record["config"], record["versions"], record["hardware"]
    return (
        f"{name}: {config['layers']}-layer {config['cell']}, {config['hidden_size']} units, "
        f"{config['optimizer']} {config['learning_rate']:g}, batch {config['batch_size']}, unroll "
        f"{config['unroll']}, seed {config['seed']}; {machine.get('gpu', machine['processor'])}, "
        f"{machine['threads']} thread(s), torch {versions['torch']}, "
        f"Python {versions['python']}.  "
    )


def rendered(text: str) -> str:
    """README with every marked part rendered anew."""
    for name, part in {"runs": runs()}.items():
        pattern = re.compile(rf"(<!-- results:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no part <!-- results:{name} --> ... <!-- end -->")
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)
    return text


def main() -> int:
    """Exit code 1 if ``--check`` finds a difference."""
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        if rendered(text) == text:
            return 0
        print("README.md differs from the records; run python results/render.py", file=sys.stderr)
        return 1
    README.write_text(rendered(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
