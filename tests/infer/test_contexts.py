"""What a prediction changes for its time, and puts back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from noisin_pyro.infer.contexts import seeded_by


@pytest.mark.parametrize(("current", "index"), [(1, 0), (0, 1), (1, None)])
def test_the_gpu_that_is_seeded_is_that_of_the_input(
    current: int, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random states of two GPUs are numbers here; after the block both are as before."""
    states, place = {0: 10, 1: 11}, [current]

    @contextmanager
    def on(gpu: int) -> Any:
        place.append(gpu)
        yield
        place.pop()

    def seed(number: int) -> None:
        states[place[-1]] = number

    fakes = {
        "current_device": lambda: place[-1],
        "device": on,
        "manual_seed": seed,
        "get_rng_state": lambda gpu: states[gpu],
        "set_rng_state": lambda state, gpu: states.update({gpu: state}),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    wanted = current if index is None else index
    with seeded_by(torch.Generator().manual_seed(1), torch.device("cuda", index)):
        assert states[wanted] > 11
        assert states[1 - wanted] == 11 - wanted
    assert states == {0: 10, 1: 11}
