"""One run in a process of its own: ``python -m noisin_pyro.experiments.worker ORDER.json``.

It reports on its standard output, a line of JSON every few steps; when nobody reads them any more
it ends. The lock on its folder, which it inherits, is held until then, so that a reproduction that
was killed and started again waits for what the first one left running.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noisin_pyro.text.corpora import load_corpus
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, make_fabric, measure, summarise
from noisin_pyro.training.loop import Interrupted, Progress
from noisin_pyro.training.record import describe_corpus, environment, write_record

__all__ = ["main"]


def main(order_file: str) -> int:
    """Carries out an order; returns the exit code, 130 if interrupted."""
    order: dict[str, Any] = json.loads(Path(order_file).read_text(encoding="utf-8"))
    folder = Path(order_file).parent
    try:
        run(order, folder)
    except Interrupted:
        return 130
    except BrokenPipeError:  # whoever gave the order is gone
        sys.stdout = None  # or Python would flush it at exit
        return 1
    return 0


def run(order: dict[str, Any], folder: Path) -> None:
    """Trains, measures and records; the folder keeps checkpoints until it is done.

    Args:
        order: ``config``, ``record`` (the file to write), ``samples`` and whatever else the
            record should hold in ``about``.
        folder: where checkpoints are kept.
    """
    target = Path(order["record"])
    start = time.monotonic()
    config = TrainConfig(**order["config"])
    corpus = load_corpus(config.corpus, config.data_dir)
    fabric = make_fabric(config)
    fabric.launch()
    unsaid = {"out", "resume", "tensorboard", "data_dir"}
    record: dict[str, Any] = {
        "schema": 1,
        **order["about"],
        "config": {k: v for k, v in asdict(config).items() if k not in unsaid},
        "corpus": describe_corpus(corpus),
        **environment(),
        "final": None,
        "diverged": None,
    }
    target.parent.mkdir(parents=True, exist_ok=True)

    def write(progress: Progress, done: bool = False) -> None:
        record.update(summarise(progress, corpus, config.batch_size))
        record["finished"] = done
        write_record(target, record)

    latest = Progress()

    def after_epoch(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        if progress.history:
            write(progress)

    def after_steps(progress: Progress, steps: int) -> None:
        _say({"epoch": progress.epoch, "step": progress.step, "steps": steps})

    try:
        model = fit_model(
            fabric,
            config,
            corpus,
            folder,
            "run",
            on_epoch=after_epoch,
            on_steps=after_steps,
        )
    except FloatingPointError as error:  # an outcome, which another attempt would repeat
        record["diverged"] = str(error).split(";")[0]
    else:
        held_out = {"valid": corpus.valid, "test": corpus.test}
        averaged = []
        for samples in order["samples"] if not config.deterministic else ():
            _say({"averaging": samples})
            averaged.append(measure(model, held_out, samples, config.seed))
        record["final"] = {
            "mean_path": measure(model, held_out, 0, config.seed),
            "averaged": averaged,
        }
    record["wall_seconds"] = time.monotonic() - start  # since the last resume
    write(latest, done=True)
    for left in (*folder.glob("*.ckpt*"),):
        left.unlink()


def _say(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
