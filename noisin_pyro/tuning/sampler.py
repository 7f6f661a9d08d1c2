"""Optuna's tree-structured Parzen estimator, with draws that a resumed study repeats."""

from __future__ import annotations

import hashlib
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
    draws.

    Args:
        seed: the seed of the study.
    """
    from optuna.samplers import TPESampler

    class Repeatable(TPESampler):
        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return fresh(trial).sample_relative(study, trial, search_space)

        def sample_independent(
            self,
            study: Study,
            trial: FrozenTrial,
            param_name: str,
            param_distribution: BaseDistribution,
        ) -> Any:
            sampler = fresh(trial, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def fresh(trial: FrozenTrial, name: str = "") -> TPESampler:
        digest = hashlib.sha256(f"{seed} {trial.number} {name}".encode()).digest()
        return TPESampler(n_startup_trials=STARTUP, seed=int.from_bytes(digest[:4], "big"))

    return Repeatable(n_startup_trials=STARTUP, seed=seed)
