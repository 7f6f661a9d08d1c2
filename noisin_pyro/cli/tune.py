"""``noisin tune``."""

from __future__ import annotations

import shlex
from typing import Any

from noisin_pyro.cli.output import say, warn

__all__ = ["tune"]


def tune(config: Any, fixed: set[str], *, trials: int = 20, storage: str | None = None) -> None:
    """Search γ, the kind of noise and dropout for the lowest validation perplexity.

    Of noise, injection, noise_to, spread and the dropout_* rates, those that are not given are
    searched; every other option is fixed. Start the same command several times with --resume true,
    and the processes share the trials.

    Args:
        config: the options, with the defaults of those that are searched.
        fixed: the names of the options that are given.
        trials: number of trials of the study, in all its processes together.
        storage: path of a journal file, or URL of a database, that holds the study; a journal in
            the folder out if omitted.

    Raises:
        ValueError, ImportError, Interrupted: as :func:`noisin_pyro.tuning.tune.tune` does.
    """
    from noisin_pyro.text.sources import check_source
    from noisin_pyro.training.interrupt import Interrupted
    from noisin_pyro.tuning.study import check_folder, require_optuna, trial_folder

    require_optuna()  # refuse bad input before importing torch, which takes seconds
    check_folder(config)
    check_source(config.corpus, config.data_dir)
    from noisin_pyro.tuning.report import study_table
    from noisin_pyro.tuning.tune import tune as run

    try:
        record = run(config, fixed, trials, storage)
    except Interrupted:
        warn("stopped, nothing is lost; the same command goes on with --resume true")
        raise
    say(study_table(record))
    if len(record["trials"]) < trials:
        say(f"\nthere are no other settings of {', '.join(record['searched'])} to try")
    say(f"\nwrote {config.out}/: study.json, tune.png, and a run folder for each trial")
    if (best := record["best"]) is None:
        warn("no trial came to its end; see the table")
        return
    folder = trial_folder(config.out, best["number"])
    perplexities = best["mean_path"]
    say(
        f"trial {best['number']} is the best: perplexity {perplexities['valid']:.2f} on the "
        f"validation split, {perplexities['test']:.2f} on the test split; see noisin evaluate "
        f"{shlex.quote(str(folder))}"
    )
