"""Renders tables from the records in this folder, and pictures from the notebooks' outputs.

The tables stand in README.md, docs/speed.md and the pages beside this script.
``python results/render.py`` rewrites the text between the markers, and the pictures; with
``--check`` it only compares, and exits with 1 if something differs.
"""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

from records import HERE, load, table
from speed_tables import (
    alternatives,
    busy,
    long_sequences,
    recurrences,
    speed,
    speed_halves,
    speed_short,
)
from training_tables import (
    antithetic,
    entries,
    half_precision,
    kills,
    reproduced,
    runs,
    seeds,
    tight_bounds,
    tuned,
)

README = HERE.parent / "README.md"
PAGES = sorted(HERE.glob("*.md"))
SPEED_PAGE = HERE.parent / "docs" / "speed.md"

#: By notebook, the index of the figure that README shows.
PICTURES = {"01_quickstart": 0, "03_empty_kl": 0}


def pictures() -> dict[Path, bytes]:
    """README's pictures by their paths, from the outputs of the committed notebooks."""
    images_by_path = {}
    for name, index in PICTURES.items():
        cells = load(HERE.parent / "notebooks" / f"{name}.ipynb")["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        images = [data["image/png"] for data in outputs if "image/png" in data]
        path = HERE.parent / "notebooks" / "figures" / f"{name}.png"
        images_by_path[path] = base64.b64decode(images[index])
    return images_by_path


def rendered() -> dict[Path, str]:
    """The contents of the files by path, with every marked part rendered anew."""
    account = reproduced()
    corpora = (HERE / "reproduce" / "table1.md").read_text(encoding="utf-8").strip()
    short = {f"short:{name}": compared(part.split("\n\n")[0]) for name, part in account.items()}
    costs = {
        "speed": speed(),
        "speed-bf16": speed_halves(),
        "recurrences": recurrences(),
        "busy": busy(),
        "long-sequences": long_sequences(),
    }
    first = {"alternatives": alternatives(), "speed-short": speed_short(), **short}
    parts = {
        "table1": corpora,
        "entries": entries(),
        "entries-seeds": seeds(),
        "half-precision": half_precision(),
        "runs": runs("*", ""),
        "tight-bounds": tight_bounds(),
        "tune": tuned(),
        "kills": kills(),
        "antithetic": antithetic(),
        **account,
    }
    files = {README: first, SPEED_PAGE: costs, **dict.fromkeys(PAGES, parts)}
    return {path: replaced(path, known) for path, known in files.items()}


def compared(markdown: str) -> str:
    """The transposed table: a row for each method that has been run, without its last column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    head, _, *blocks = [row[:-1] for row in rows]
    methods = [column for column in zip(head, *blocks) if set(column[1:]) != {"–"}]
    return table(list(methods[0]), [list(cells) for cells in methods[1:]])


def replaced(path: Path, parts: dict[str, str]) -> str:
    """The text of a file with the parts between its markers replaced.

    Raises:
        SystemExit: if a marker has no part.
    """

    def part(match: re.Match[str]) -> str:
        if match[2] not in parts:
            raise SystemExit(f"{path.name} asks for {match[2]!r}; there are {', '.join(parts)}")
        return f"{match[1]}{parts[match[2]]}\n{match[3]}"

    text = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results:(\S+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, part, text, flags=re.DOTALL)


def main() -> int:
    """Renders or, with ``--check``, compares; returns the exit code."""
    if "--check" in sys.argv:
        stale = [
            str(p) for p, data in pictures().items() if not p.exists() or p.read_bytes() != data
        ]
        stale += [str(p) for p, text in rendered().items() if p.read_text("utf-8") != text]
        if stale:
            print(f"{', '.join(stale)} differ; run python results/render.py", file=sys.stderr)
        return 1 if stale else 0
    for path, data in pictures().items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
