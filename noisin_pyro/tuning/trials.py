"""The trials of a study: which is next for this process, which have ended, and which is best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.lease import Lease
from noisin_pyro.tuning.space import number_of_settings, suggest
from noisin_pyro.tuning.study import locked, trial_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["Trials", "best_of", "finished"]

POLL = 0.5  # seconds between two checks of the trials of other processes


class Trials:
    """Hands out the trials of a study to this process, one after another.

    A trial that draws the setting of an earlier one would be the same training. It is not handed
    out: it fails, and another is drawn.

    Args:
        study: the study.
        config: the configuration of the study, whose ``out`` is its folder.
        names: the searched options.
        limit: the number of trials of all processes together.
        wait: called with the numbers of other processes' running trials while none is left here.
    """

    def __init__(
        self,
        study: Study,
        config: TrainConfig,
        names: tuple[str, ...],
        limit: int,
        wait: Callable[[list[int]], None] = lambda numbers: None,
    ) -> None:
        self._study, self._config, self._names = study, config, names
        self._folder, self._limit, self._wait = Path(config.out), limit, wait
        # Kept, since a lease remembers how long it is untouched.
        self._leases: dict[int, Lease] = {}

    @contextmanager
    def next(self) -> Iterator[Trial | None]:
        """Locks a trial for this process while the block runs.

        Yields None if all are finished, or every setting has been tried. An interrupted trial
        comes before a new one.
        """
        with ExitStack() as stack:
            yield self._claim(stack)

    def _claim(self, stack: ExitStack) -> Trial | None:
        while True:
            with locked(self._folder):
                trial, elsewhere = self._take(stack)
            if trial is not None or not elsewhere:
                return trial
            self._wait(elsewhere)
            time.sleep(POLL)

    def _take(self, stack: ExitStack) -> tuple[Trial | None, list[int]]:
        from optuna.trial import TrialState

        while True:
            trial, elsewhere = self._first(stack)
            if trial is None:
                return None, elsewhere
            chosen = suggest(trial, self._names, self._config)
            if chosen not in self._settings(until=trial.number):
                return trial, []
            self._study.tell(trial, state=TrialState.FAIL)
            stack.close()  # gives its lease back

    def _first(self, stack: ExitStack) -> tuple[Trial | None, list[int]]:
        """The first interrupted trial or else a new one; None if there are none left."""
        from optuna.trial import Trial, TrialState

        known = self._study.get_trials(deepcopy=False)
        running = [t.number for t in known if t.state == TrialState.RUNNING]
        for number in running:
            if self._has(number, stack):
                return Trial(self._study, known[number]._trial_id), []
        begun = [t for t in known if t.state not in (TrialState.WAITING, TrialState.FAIL)]
        tried = {tuple(setting.values()) for setting in self._settings(until=len(known))}
        if len(begun) >= self._limit or len(tried) >= number_of_settings(self._names):
            return None, running
        trial = self._study.ask()
        if not self._has(trial.number, stack):
            raise ValueError(f"{self._lease(trial.number).path} is of no trial; remove it")
        return trial, []

    def _settings(self, until: int) -> list[dict[str, Any]]:
        """The settings of the trials before one."""
        from optuna.trial import FixedTrial, TrialState

        settings = []
        for trial in self._study.get_trials(deepcopy=False)[:until]:
            if trial.state not in (TrialState.WAITING, TrialState.FAIL):
                with suppress(ValueError):  # a process was killed while it drew this trial
                    settings.append(suggest(FixedTrial(trial.params), self._names, self._config))
        return settings

    def _has(self, number: int, stack: ExitStack) -> bool:
        """Takes a trial's lease, unless another process has it or has ended the trial."""
        lease = self._lease(number)
        if not lease.take():
            return False
        if self._study.get_trials(deepcopy=False)[number].state.is_finished():
            lease.give_back()
            return False
        stack.callback(lease.give_back)
        return True

    def _lease(self, number: int) -> Lease:
        path = trial_folder(self._folder, number).with_suffix(".lock")
        return self._leases.setdefault(number, Lease(path))


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have ended, including those that were pruned or diverged."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the lowest validation perplexity; the earliest of equal ones."""
    whole = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    return min(whole, key=lambda t: (t.value, t.number), default=None)
