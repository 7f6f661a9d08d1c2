"""Optuna's tree-structured Parzen estimator, with draws that a resumed study repeats."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["make_sampler"]

STARTUP = 5  # trials drawn at random, before the estimator suggests any


def make_sampler(seed: int) -> BaseSampler:
    """A sampler whose draws depend on the seed, the trial's number, and the trials before it.

    A sampler with a random state would start that anew when a study is resumed, and repeat earlier
    draws. After a failed trial, whose draw had been tried before, a draw is uniform: the estimator
    could suggest the same again for ever.

    Args:
        seed: the seed of the study.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    class Repeatable(TPESampler):
        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return fresh(study, trial).sample_relative(study, trial, search_space)

        def sample_independent(
            self,
            study: Study,
            trial: FrozenTrial,
            param_name: str,
            param_distribution: BaseDistribution,
        ) -> Any:
            sampler = fresh(study, trial, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def fresh(study: Study, trial: FrozenTrial, name: str = "") -> TPESampler:
        digest = hashlib.sha256(f"{seed} {trial.number} {name}".encode()).digest()
        before = study.get_trials(deepcopy=False)[: trial.number]
        startup = sys.maxsize if before and before[-1].state == TrialState.FAIL else STARTUP
        return TPESampler(n_startup_trials=startup, seed=int.from_bytes(digest[:4], "big"))

    return Repeatable(n_startup_trials=STARTUP, seed=seed)
