"""A sample site per timestep, as Pyro sees it."""

from __future__ import annotations

from typing import Any

from pyro.infer.inspect import get_dependencies

from noisin_pyro import Additive, LanguageModel, NoisyLSTM
from tests.helpers import NORMAL, D, H, K, batch


def test_pyro_sees_the_past_alone_behind_a_state() -> None:
    """What ``pyro.render_model`` draws: no arrow back in time, though the layers run in turn."""
    rnn = NoisyLSTM(D, H, 2, noise=Additive(NORMAL), spread=0.5, sites="timestep")
    x, y = batch()
    arrows: Any = get_dependencies(LanguageModel(K, rnn), (x, y))["prior_dependencies"]
    states = [name for name in arrows if name.startswith("rnn.z_")]
    assert len(states) == 2 * len(x)
    for state in states:
        layer, step = map(int, state.removeprefix("rnn.z_").split("_"))
        past = {f"rnn.z_{k}_{t}" for k in range(layer + 1) for t in range(step + 1)}
        assert set(arrows[state]) == past
