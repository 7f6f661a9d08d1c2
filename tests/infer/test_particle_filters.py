"""SMCFilter on a model run step by step, against the exact evidence.

Statistical tests have fixed seeds and say how often they would fail by chance on others.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer import RenyiELBO, SMCFilter
from torch import Tensor

from noisin_pyro import LanguageModel, Multiplicative, NoisyLSTM, PriorGuide
from tests.helpers import D, H, batch, linear_gaussian, series, site_kinds, t_statistics


class Stepwise:
    """A model or a guide run one step at a time, as SMCFilter wants it.

    What it carries is the RNN's state, under the keys 0 and, for an LSTM's c, 1.
    """

    def __init__(self, program: Any) -> None:
        self.program = program
        self.log_evidence = 0.0

    def init(self, state: Any, x: Tensor, y: Tensor) -> None:
        self._advance(state, x, y, None)

    def step(self, state: Any, x: Tensor, y: Tensor) -> None:
        self._advance(state, x, y, state[0] if len(state) == 1 else (state[0], state[1]))

    def _advance(self, state: Any, x: Tensor, y: Tensor, carried: Any) -> None:
        trace = poutine.trace(self.program).get_trace(x, y, carried)
        if "y" not in trace.nodes:  # the guide, which may not write
            return
        _, final = trace.nodes["_RETURN"]["value"]
        for key, part in enumerate(final if isinstance(final, tuple) else (final,)):
            state[key] = part
        # The filter forgets its normalising constants. With resampling at every step all
        # particles weigh the same before it, so they are means of p(y_t | z_t).
        trace.compute_log_prob()
        weights = trace.nodes["y"]["log_prob"].flatten(1).sum(1)
        self.log_evidence += float(weights.logsumexp(0)) - math.log(len(weights))


@torch.no_grad()
def filtered(model: Any, x: Tensor, y: Tensor, particles: int) -> tuple[float, SMCFilter]:
    """An estimate of log p(y), whose exponential is unbiased, and the filter."""
    program = Stepwise(model)
    smc = SMCFilter(
        program, Stepwise(PriorGuide(model)), particles, max_plate_nesting=2, ess_threshold=1.0
    )
    smc.init(x[:1], y[:1])
    for t in range(1, len(x)):
        smc.step(x[t : t + 1], y[t : t + 1])
    return program.log_evidence, smc


@site_kinds
def test_particle_filter_finds_the_evidence(sites: str) -> None:
    """Where as many particles without resampling are lost: a series of 25 steps.

    The ratio of estimate and exact evidence has mean 1; its t statistic over 16 runs exceeds 8
    about once in 10⁶ seeds.
    """
    model, steps, particles, runs = linear_gaussian(sites), 25, 400, 16
    x, y, joint = series(model, steps)
    log_evidence = float(joint.log_evidence(y))
    estimates, means = [], []
    for _ in range(runs):
        estimate, smc = filtered(model, x, y, particles)
        estimates.append(estimate)
        means.append(smc.get_empirical()[0].mean.flatten())
    error = torch.tensor(estimates) - log_evidence
    assert abs(float(t_statistics(error.exp(), 1.0))) < 8.0
    assert float(error.square().mean().sqrt()) < 0.6

    bound = RenyiELBO(0.0, num_particles=particles, vectorize_particles=True, max_plate_nesting=2)
    weighted = torch.tensor([-bound.loss(model, PriorGuide(model), x, y) for _ in range(runs)])
    lost = float((weighted - log_evidence).square().mean().sqrt())
    assert lost > 10 * float(error.square().mean().sqrt())

    # and the filtering mean E[z_T | y_{1:T}], of which self-normalised weights are biased by
    # less than one part in `particles` of the posterior's spread
    mean, cov = joint.posterior(y)
    spread = cov.diagonal()[-2:].sqrt()
    standardised = (torch.stack(means) - mean[-2:]) / spread
    assert float(standardised.mean(0).abs().max()) < 0.1
    assert float(((mean - joint.mean_z)[-2:] / spread).abs().max()) > 1.0  # y has a say in it


def test_particle_filter_on_an_lstm_of_two_layers() -> None:
    """Its evidence is not known, so the reference is the importance-weighted bound of 40 000.

    The difference exceeds seven of its standard errors about once in 10⁶ seeds.
    """
    rnn = NoisyLSTM(
        D, H, 2, noise=Multiplicative(dist.Gamma(2.0, 1.0)), spread=0.8, sites="timestep"
    )
    model = LanguageModel(5, rnn).double()
    for name, parameter in model.named_parameters():
        parameter.data.mul_(20.0 if name.startswith("emission") else 2.0)
    x, y = (part[:, :1] for part in batch(5))
    estimates = torch.tensor([filtered(model, x, y, 300)[0] for _ in range(16)])
    with torch.no_grad():
        wide = x.expand(-1, 40_000)
        terms = model.predict(wide)[0].log_prob(y.expand(-1, 40_000)).sum(0)
    reference = float(terms.logsumexp(0)) - math.log(40_000)
    ratio = (terms - reference).exp()
    error = float(ratio.std()) / math.sqrt(40_000)
    ours = (estimates - reference).exp()
    error = math.hypot(error, float(ours.std()) / math.sqrt(len(ours)))
    assert abs(float(ours.mean()) - 1.0) < 7.0 * error
    # The estimate is good, and tells the evidence from the NOISIN bound.
    assert error < 0.05
    assert reference - float(terms.mean()) > 3 * error
