"""``noisin train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from noisin_pyro.cli.output import say, warn

__all__ = ["train"]


def train(config: Any) -> None:
    """Train a language model with noise, and the same model without it.

    The defaults train on the corpus pydoc, in minutes on two cores. The run folder (--out) gets the
    weights, checkpoints, the options, a record of every perplexity and a picture of them.

    Args:
        config: the options.

    Raises:
        ValueError, FloatingPointError, Interrupted, OSError: as
            :func:`noisin_pyro.training.run.train` does.
    """
    from noisin_pyro.text.sources import check_source
    from noisin_pyro.training.hosts import is_first
    from noisin_pyro.training.interrupt import Interrupted
    from noisin_pyro.training.out import check_folder

    if config.nodes == 1:  # refuse bad input before importing torch, which takes seconds
        check_folder(config)
        check_source(config.corpus, config.data_dir)
    from noisin_pyro.training.report import render_table
    from noisin_pyro.training.run import train as run

    first = is_first(config)  # of several processes, the only one that prints
    if first:
        say(f"{config.corpus}: {config.layers}-layer {config.cell}, {config.hidden_size} units")
    try:
        record = run(config)
    except Interrupted:
        _tell_how_to_go_on(config)
        raise
    if not first:
        return
    say("\n" + render_table(record))
    say(f"\nwrote {config.out}/: {', '.join(_files(Path(config.out)))}")
    if len(record["models"]) > 1:
        without = _files(Path(config.out, "deterministic"))
        say(f"      {config.out}/deterministic/, the model without noise: {', '.join(without)}")


def _tell_how_to_go_on(config: Any) -> None:
    path = Path(config.out, "config.yaml")
    if not path.exists():
        warn(f"stopped before there was anything to save in {config.out!r}; start it again")
        return
    trust = " --trust_code true" if config.trust_code else ""  # no file may hold it
    command = f"noisin train --config {shlex.quote(str(path))} --resume true{trust}"
    warn(f"stopped, nothing is lost; go on with {command}")


def _files(folder: Path) -> list[str]:
    """What a run folder contains for its user."""
    from noisin_pyro.training.out import BEST, LAST

    results = ("record.json", "metrics.csv", "curves.png", "config.yaml")
    model = ("config.json", "vocabulary.txt", "model.safetensors")
    return [name for name in (*results, *model, BEST, LAST) if (folder / name).is_file()]
