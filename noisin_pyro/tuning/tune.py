"""``noisin tune``: runs trials until the study has the number that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import load_checked, make_fabric, measure
from noisin_pyro.training.folder import load_run
from noisin_pyro.training.out import BEST, LAST, PREVIOUS
from noisin_pyro.training.printable import printable
from noisin_pyro.training.record import new_record, write_record
from noisin_pyro.tuning.report import describe_options, describe_result, trial_row, write_picture
from noisin_pyro.tuning.space import searched
from noisin_pyro.tuning.study import (
    FREE,
    PICTURE,
    RECORD,
    check_folder,
    locked,
    open_study,
    require_optuna,
    trial_folder,
)
from noisin_pyro.tuning.trial import carry_out, trial_config
from noisin_pyro.tuning.trials import Trials, best_of, finished

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["tune"]

WEIGHTS = (LAST, PREVIOUS, BEST, "model.safetensors")


def tune(
    config: TrainConfig, fixed: Collection[str], trials: int = 20, storage: str | None = None
) -> dict[str, Any]:
    """Searches options of noise and dropout, by validation perplexity on the mean path.

    The first trial has the default noise of ``noisin train``, and no dropout; the others are drawn
    by Optuna's tree-structured Parzen estimator. Once four trials have finished, a trial that is
    worse than the median of those before it is pruned, but not in the first third of its epochs
    (rounded down). A setting is trained once: a trial that draws an earlier one's fails, which
    leaves its number out of the record, and another is drawn. The study ends early when every
    setting has been tried. In one process the trials, their numbers and their order are the same
    however often the study is killed and resumed.

    Args:
        config: the options of all trials; ``out`` is the folder of the study, and ``resume``
            resumes or joins it.
        fixed: the names of the options that are not searched.
        trials: number of trials of the study, in all processes, including those that have ended.
        storage: the path of a journal file, or the URL of a database that Optuna knows; a journal
            in the folder if None.

    Returns:
        The record, as in ``study.json``.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if nothing is left to search, or the folder, the storage or the corpus does not
            fit.
        Interrupted: if a signal came; the running trial has saved a checkpoint.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if (count := config.devices * config.nodes) > 1:
        raise ValueError(
            f"noisin tune trains in one process, got devices for {count}; start it several "
            "times with the same out and --resume true, and they share the trials"
        )
    names = searched(config, set(fixed))
    require_optuna()
    check_folder(config)
    corpus = load_checked(config)
    make_fabric(config)

    with _quiet_optuna(), _storage_errors(storage):
        study = open_study(config, names, corpus.sha256, storage)
        say = _Say(config.quiet)
        queue = Trials(study, config, names, trials, say.waiting)
        while True:
            with queue.next() as trial:
                if trial is None:
                    break
                chosen = trial_config(trial, names, config)
                say(f"trial {trial.number}: {describe_options(chosen.to_dict(), names)}")
                carry_out(study, trial, chosen, corpus)
            record = _write(study, config, names, corpus)
            row = next(row for row in record["trials"] if row["number"] == trial.number)
            say(f"trial {trial.number}: {describe_result(row)}")
        return _write(study, config, names, corpus, final=True)


def _write(
    study: Study,
    config: TrainConfig,
    names: tuple[str, ...],
    corpus: Corpus,
    final: bool = False,
) -> dict[str, Any]:
    """Writes the record and the picture, and removes the weights of all trials but the best."""
    folder = Path(config.out)
    with locked(folder):
        ended = finished(study)
        best = best_of(ended)
        for trial in (trial for trial in ended if trial is not best):
            for name in WEIGHTS:
                (trial_folder(folder, trial.number) / name).unlink(missing_ok=True)
        rows = [trial_row(trial, names, config) for trial in ended]
        record = new_record(config, corpus, FREE, searched=list(names), trials=rows, best=None)
        if best is not None:
            record["best"] = {"number": best.number}
            if final:
                model = _load(trial_folder(folder, best.number), config.trust_code)
                splits = {"valid": corpus.valid, "test": corpus.test}
                record["best"]["mean_path"] = measure(model, splits, 0, config.seed)
        write_record(folder / RECORD, record)
        if rows:
            write_picture(folder / PICTURE, record)
    return record


def _load(folder: Path, trust_code: bool) -> LanguageModel:
    """The model of the best trial."""
    try:
        return load_run(folder, trust_code)[2]
    except ValueError as error:
        raise ValueError(
            f"the best trial's run cannot be read ({str(error).split(';')[0]}); bring its folder "
            "back, or train it again by noisin train with its options, which study.json holds"
        ) from None


class _Say:
    """Prints the progress of a study to stderr.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._told: list[int] = []

    def __call__(self, text: str) -> None:
        if not self._quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def waiting(self, numbers: list[int]) -> None:
        """Prints, once, which trials of other processes this one waits for."""
        if numbers != self._told:
            self._told = numbers
            self(f"waiting for {', '.join(map(str, numbers))} in another process")


@contextmanager
def _storage_errors(storage: str | None) -> Iterator[None]:
    """Turns errors of the database, such as a full or locked one, into ValueError."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        raise ValueError(
            f"storage {storage!r} cannot be used any more ({reason}); what was there stays, go on "
            "with --resume true once it can"
        ) from None


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Within the block Optuna logs warnings only."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
