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


@pytest.mark.parametrize("index", [0, None])
def test_a_device_that_is_the_only_one_of_its_kind(
    index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torch.mps`` has neither ``device`` nor ``current_device``."""
    assert not hasattr(torch.mps, "device") and not hasattr(torch.mps, "current_device")
    states = [10]
    monkeypatch.setattr(torch.mps, "manual_seed", states.append)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device="mps": states[-1])
    monkeypatch.setattr(
        torch.mps, "set_rng_state", lambda state, device="mps": states.append(state)
    )
    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with seeded_by(torch.Generator().manual_seed(1), torch.device("mps", index)):
            assert states[-1] > 10
            drawn.append(torch.rand(3))
        assert states[-1] == 10
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(torch.get_rng_state(), before)
    assert states[1] == states[3]
