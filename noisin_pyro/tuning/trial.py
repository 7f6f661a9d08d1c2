"""One trial: a training that reports its validation perplexity after each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.perplexity import perplexity
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, make_fabric
from noisin_pyro.training.folder import open_folder, write_model
from noisin_pyro.training.progress import Progress
from noisin_pyro.training.run import models
from noisin_pyro.training.scalars import log_epoch, tensorboard_log
from noisin_pyro.tuning.space import suggest
from noisin_pyro.tuning.study import trial_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

__all__ = ["carry_out", "trial_config"]


class Pruned(Exception):
    """The trial is worse than the median of those before it."""


def trial_config(trial: Trial, names: tuple[str, ...], base: TrainConfig) -> TrainConfig:
    """The configuration of a trial, in its own folder, where it resumes what is there."""
    chosen = suggest(trial, names, base)
    return replace(base, **chosen, out=str(trial_folder(base.out, trial.number)), resume=True)


def carry_out(study: Study, trial: Trial, config: TrainConfig, corpus: Corpus) -> None:
    """Trains a trial to its end, or until it is pruned, and tells the study.

    Its folder is a run folder of ``noisin train`` without the deterministic model. An interrupted
    trial resumes from the checkpoint in its folder.

    Raises:
        Interrupted: if a signal came; the trial resumes when it is carried out again.
        ValueError: if its folder holds another run, or files that are of no run.
    """
    from optuna.trial import TrialState

    told = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    reported = set(told)
    latest = Progress()

    def on_epoch(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        for row in progress.history:
            if row["epoch"] not in reported:
                trial.report(perplexity(row["valid"]), row["epoch"])
                reported.add(row["epoch"])
        if log is not None and progress.history:
            log_epoch(log, label, progress.history[-1])
        trial.set_user_attr("seconds", sum(row["seconds"] for row in progress.history))
        if progress.history and not progress.finished and trial.should_prune():
            raise Pruned

    folder = Path(config.out)
    label, (model_config, _) = next(iter(models(config, folder).items()))
    with (
        open_folder(config, corpus, label),
        tensorboard_log(folder / "tensorboard", config.tensorboard) as log,
    ):
        fabric = make_fabric(config)
        fabric.launch()
        try:
            model = fit_model(fabric, model_config, corpus, folder, label, on_epoch=on_epoch)
        except Pruned:
            study.tell(trial, state=TrialState.PRUNED)
            return
        except FloatingPointError as error:  # a result, since another attempt would diverge too
            trial.set_user_attr("diverged", str(error).split(";")[0])
            study.tell(trial, state=TrialState.PRUNED)
            return
        write_model(folder, model, corpus.vocabulary)
    study.tell(trial, perplexity(latest.best))
