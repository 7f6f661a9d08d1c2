"""Serving: threads that call a model side by side leave Pyro's global store alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from noisin_pyro import Additive, LanguageModel, Learned, NoisyLSTM, PriorGuide, evaluate

T, B = 5, 3


@pytest.mark.parametrize("call", ["predict", "forward", "rnn", "evaluate"])
def test_threads_leave_the_param_store_as_it_was(call: str) -> None:
    rnn = NoisyLSTM(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=Learned(0.4))
    model = LanguageModel(7, rnn, input_noise=Additive(dist.Normal(0.0, 1.0)))
    x = torch.randint(7, (T, B))
    optimizer = pyro.optim.Adam({"lr": 0.01})
    SVI(model, PriorGuide(model), optimizer, Trace_ELBO()).step(x, x)
    store = pyro.get_param_store()
    before = dict(store.items())
    assert len(before) >= 8
    scopes = []
    original = store.scope

    def scope(*args: Any, **kwargs: Any) -> Any:
        scopes.append(args)
        return original(*args, **kwargs)

    def serve(seed: int) -> None:
        for _ in range(20):
            if call == "predict":
                model.predict(x)
            elif call == "forward":
                model(x, x)
            elif call == "rnn":
                model.rnn(torch.randn(T, B, 4))
            else:
                evaluate(model, x.flatten(), samples=2, batch_size=2)

    store.scope = scope  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(serve, range(4)))
    finally:
        del store.scope
    after: dict[str, Tensor] = dict(store.items())
    assert after.keys() == before.keys()
    assert not scopes  # which would show another thread an empty store, if only for a moment
