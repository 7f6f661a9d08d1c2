"""Two panels side by side in a PNG file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import replacing

__all__ = ["plot_epochs", "two_panels"]


@contextmanager
def two_panels(path: Path, title: str) -> Iterator[Sequence[Any]]:
    """Yields two matplotlib axes to draw on, and writes the file at the end of the block.

    Args:
        path: the file to write.
        title: the title above both panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    yield panels
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title.replace("$", r"\$"))  # else matplotlib would read mathematics
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in a corpus's name
        # The version of matplotlib is left out, so that the same records give the same bytes.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def plot_epochs(panel: Any, history: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    """Plots the values of ``key`` in a history against the epoch."""
    panel.plot([row["epoch"] for row in history], [row[key] for row in history], **style)
    panel.set_xlabel("epoch")
    panel.xaxis.get_major_locator().set_params(integer=True)
