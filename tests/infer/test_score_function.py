"""Noise without a pathwise gradient: the score-function term of the objective.

Statistical tests have fixed seeds and say how often they would fail by chance on others.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn

from noisin_pyro import (
    CategoricalEmission,
    MeanParameterized,
    NoisinELBO,
    PriorGuide,
    SequenceModel,
)
from tests.helpers import D, K, make_rnn


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_score_function_gradient_against_enumeration(family: str) -> None:
    """The mean of many estimates against the exact gradient of E[Σ log p(y_t | z_t)].

    The largest of the t statistics of all coordinates exceeds the limit by chance about once
    in 10⁶ seeds (Student's t with 39 degrees of freedom, Bonferroni).
    """
    steps, hidden = 2, 2
    distribution, cell, values = {
        "bernoulli": (dist.Bernoulli, "sigmoid", 2),
        "poisson": (dist.Poisson, "relu", 9),  # P(z ≥ 9) is below 1e-9 for these means
    }[family]
    rnn = make_rnn(cell, D, hidden, noise=MeanParameterized(lambda m, s: distribution(m)))
    model = SequenceModel(nn.Identity(), rnn, CategoricalEmission(hidden, K)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.0, 1.0)
        if family == "poisson":
            for name, parameter in model.rnn.named_parameters():
                parameter.uniform_(*((0.05, 0.1) if "bias" in name else (-0.03, 0.03)))
    leaves = [p for name, p in model.named_parameters() if p.numel() and "spread" not in name]
    x = torch.randn(steps, 1, D, dtype=torch.float64)
    y = torch.tensor([[1], [4]])

    # every path z, one to a column of the batch
    paths = torch.cartesian_prod(*[torch.arange(values, dtype=torch.float64)] * (steps * hidden))
    paths = paths.view(-1, steps, hidden).movedim(0, 1)
    conditions = {f"rnn.z_0_{t}": paths[t : t + 1] for t in range(steps)}
    wide = [part.expand(-1, paths.shape[1], *part.shape[2:]) for part in (x, y)]
    trace = poutine.trace(poutine.condition(model, conditions)).get_trace(*wide)
    trace.compute_log_prob()
    log_p: Any = sum(trace.nodes[name]["log_prob"].squeeze(0) for name in conditions)
    probability = log_p.exp()
    torch.testing.assert_close(
        probability.sum().detach(), torch.ones((), dtype=torch.float64), rtol=1e-8, atol=1e-8
    )
    exact_loss = -(probability * trace.nodes["y"]["log_prob"].sum(0)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact_loss, leaves)])

    objective = NoisinELBO(500, vectorize_particles=True)(model, PriorGuide(model))
    estimates = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(objective(x, y), leaves)])
            for _ in range(40)
        ]
    )
    error = estimates.std(0) / math.sqrt(len(estimates))
    moving = error > 1e-12  # a ReLU unit that is off has no gradient at all
    assert int(moving.sum()) > 10
    t = (estimates.mean(0) - exact)[moving] / error[moving]
    assert float(t.abs().max()) < 7.0
    torch.testing.assert_close(estimates.mean(0)[~moving], exact[~moving], rtol=1e-6, atol=1e-9)
    # E[log p(y | z)] reaches the RNN by the score alone, so the test sees whether it is there
    recurrent = sum(parameter.numel() for parameter in rnn.parameters() if parameter.dim())
    assert float((exact / error)[:recurrent].nan_to_num(0, 0, 0).abs().max()) > 10
