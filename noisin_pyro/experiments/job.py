"""What a worker does: train, measure and record one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import remove_partials
from noisin_pyro.experiments.averaging import measure_averaging
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, make_fabric, measure
from noisin_pyro.training.progress import Progress, Status
from noisin_pyro.training.record import describe_training, new_record, write_record
from noisin_pyro.training.text import load_text

__all__ = ["run"]

#: Options of the configuration that the record leaves out.
OMIT = ("out", "resume", "tensorboard", "data_dir", "trust_code")


def run(job: dict[str, Any], folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Trains a model and measures it, and writes the record after each epoch and at the end.

    Args:
        job: ``config``, ``record`` (the file to write), ``samples``, ``averaging`` and, in
            ``about``, further entries of the record.
        folder: the folder for checkpoints.
        report: called with ``epoch``, ``step`` and ``steps`` while training, and with
            ``averaging``, the number of samples, while measuring.
    """
    target = Path(job["record"])
    start = time.monotonic()
    config = TrainConfig.from_dict(job["config"])
    corpus = load_text(config)
    fabric = make_fabric(config)
    fabric.launch()
    record = new_record(config, corpus, OMIT, **job["about"], final=None, diverged=None)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(target)  # of a killed attempt; this process has the lease of the run
    latest = Progress()

    def write(progress: Progress, finished: bool = False) -> None:
        nonlocal latest
        latest = progress
        if progress.history or finished:
            record.update(describe_training(progress, corpus, config.batch_size))
            record["finished"] = finished
            write_record(target, record)

    def on_steps(status: Status) -> None:
        report({"epoch": status.epoch, "step": status.step, "steps": status.steps})

    try:
        model = fit_model(fabric, config, corpus, folder, "run", on_epoch=write, on_steps=on_steps)
    except FloatingPointError as error:  # recorded, since another attempt would diverge too
        record["diverged"] = str(error).split(";")[0]
    else:
        record["final"] = _measure(model, corpus, config, job, report)
    record["wall_seconds"] = time.monotonic() - start  # since the last resume
    write(latest, finished=True)


def _measure(
    model: LanguageModel,
    corpus: Corpus,
    config: TrainConfig,
    job: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The entry ``final`` of a record: perplexities on the mean path, and averaged."""
    splits = {"valid": corpus.valid, "test": corpus.test}
    averaged = []
    for samples in job["samples"] if not config.deterministic else ():
        report({"averaging": samples})
        averaged.append(measure(model, splits, samples, config.seed))
    final: dict[str, Any] = {
        "mean_path": measure(model, splits, 0, config.seed),
        "averaged": averaged,
    }
    if job.get("averaging") and not config.deterministic:
        final["averaging"] = measure_averaging(
            model, corpus.test, config.seed, lambda count: report({"averaging": count})
        )
    return final
