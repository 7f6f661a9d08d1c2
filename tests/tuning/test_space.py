"""What is searched, and what a trial draws."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FixedTrial

from noisin_pyro.training.config import DROPOUTS, TrainConfig
from noisin_pyro.tuning.sampler import make_sampler
from noisin_pyro.tuning.space import CHOICES, SEARCHED, SPREADS, first_guess, searched, suggest


def test_what_is_given_is_not_searched() -> None:
    two = TrainConfig(layers=2)
    assert searched(two, set()) == SEARCHED
    assert searched(two, {"spread", "noise_to", "epochs"}) == (
        *("noise", "injection"),
        *DROPOUTS,
    )
    assert "dropout_layers" not in searched(TrainConfig(), set())
    assert searched(TrainConfig(noise="none"), {"noise"}) == (
        *("dropout_words", "dropout_input", "dropout_output"),
    )
    zaremba = searched(TrainConfig(layers=2, dropout=0.3), {"dropout"})
    assert zaremba == (*CHOICES, "spread", "dropout_words")


@pytest.mark.parametrize(
    ("config", "fixed", "sentence"),
    [
        (TrainConfig(), set(SEARCHED), "every option that noisin tune searches is given"),
        (TrainConfig(noise="none"), {"noise", *DROPOUTS}, "leave out one of them"),
        (TrainConfig(learn_spread=True), {"learn_spread"}, "γ is learned and not searched"),
        (
            TrainConfig(noise="none", variational_dropout=0.2),
            {"variational_dropout"},
            "got variational_dropout 0.2; leave it out",
        ),
    ],
)
def test_refusals(config: TrainConfig, fixed: set[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        searched(config, fixed)


def test_every_draw_is_a_run_and_within_its_bounds() -> None:
    base = TrainConfig(layers=2)
    study = optuna.create_study(sampler=make_sampler(3))
    seen: dict[str, set[object]] = {name: set() for name in SEARCHED}
    for _ in range(40):
        trial = study.ask()
        options = suggest(trial, SEARCHED, base)
        config = TrainConfig(**{**base.to_dict(), **options})
        low, high = SPREADS[config.injection]
        assert isinstance(config.spread, float) and low <= config.spread <= high
        assert all(0 <= getattr(config, name) <= 0.5 for name in DROPOUTS)
        for name, value in options.items():
            seen[name].add(value)
        study.tell(trial, trial.number)
    assert all(seen[name] == set(values) for name, values in CHOICES.items())


def test_the_first_guess_is_noise_without_dropout() -> None:
    base = TrainConfig(layers=2)
    options = suggest(FixedTrial(first_guess(SEARCHED, base)), SEARCHED, base)
    assert TrainConfig(**{**base.to_dict(), **options}) == base
    additive = TrainConfig(injection="additive")
    assert first_guess(("spread",), additive) == {"spread_additive": 0.2}


def test_draws_depend_on_the_trials_before_and_not_on_the_process() -> None:
    """Each trial is drawn by a sampler that was made just then, as after a kill."""
    base = TrainConfig()
    names = searched(base, set())

    def draws(anew: bool, seed: int = 1) -> list[dict[str, object]]:
        study = optuna.create_study(sampler=make_sampler(seed))
        found = []
        for _ in range(12):
            if anew:
                study.sampler = make_sampler(seed)
            trial = study.ask()
            found.append(suggest(trial, names, base))
            study.tell(trial, float(len(str(found[-1]))))
        return found

    assert draws(anew=True) == draws(anew=False) != draws(anew=False, seed=2)
    assert len({str(options) for options in draws(anew=True)}) == 12
