"""The objective under dropout against the sum over all masks, each of which can be listed.

Weights are fixed; a statistical test says how often it would fail by chance on another seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from noisin_pyro import (
    CategoricalEmission,
    Learned,
    Multiplicative,
    NoisinELBO,
    NoisyRNN,
    PriorGuide,
    SequenceModel,
)
from tests.helpers import double, t_statistics
from tests.proofs.chance import NO_CHANCE, flat_gradient

KEEP, INPUTS, H, K, B = 0.625, 3, 2, 4, 2  # a distribution rounds 0.6 to single precision
NOISE = Multiplicative(dist.Bernoulli(KEEP))
sizes = pytest.mark.parametrize(("layers", "steps"), [(1, 3), (2, 2)])


class Dropout:
    """A tanh RNN with dropout on its state, and all that is known of it by listing the masks."""

    def __init__(self, layers: int, steps: int, **options: Any) -> None:
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        spread = Learned(math.sqrt((1 - KEEP) / KEEP))  # that of dropout
        rnn = NoisyRNN(INPUTS, H, layers, noise=NOISE, spread=spread, **options)
        self.model: Any = SequenceModel(nn.Identity(), rnn, CategoricalEmission(H, K)).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.dim():
                    parameter.copy_(normal(*parameter.shape))
        self.x = normal(steps, B, INPUTS)
        self.y = torch.randint(K, (steps, B), generator=generator)
        self.guide = PriorGuide(self.model)
        masks = list(itertools.product((0.0, 1.0), repeat=steps * layers * H))
        self.masks = double(masks).view(-1, 1, layers, steps, H)  # M masks, one sequence
        kept = self.masks.flatten(1).sum(1)
        dropped = self.masks[0].numel() - kept
        self.probability = KEEP**kept * (1 - KEEP) ** dropped

    def log_likelihoods(self) -> Tensor:
        """log p(y | mask) with shape (M, B), in plain torch, the paper's equations one by one."""
        model, rnn, total = self.model, self.model.rnn, double(0.0)
        state = [torch.zeros(1, 1, H, dtype=torch.float64)] * rnn.num_layers
        for t, (x, y) in enumerate(zip(self.x, self.y)):
            for layer, spread in enumerate(rnn.spread):
                w_ih, w_hh, b_ih, b_hh = (
                    getattr(rnn, f"{name}_l{layer}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                h = torch.tanh(x @ w_ih.T + b_ih + state[layer] @ w_hh.T + b_hh)
                epsilon = (self.masks[:, :, layer, t] - KEEP) / math.sqrt(KEEP * (1 - KEEP))
                x = h * (1 + spread * epsilon)  # what the layer above reads
                state[layer] = x if rnn.noise_to != "output" else h
            logits = x @ model.emission.weight.T + model.emission.bias
            log_prob = logits.log_softmax(-1)
            total = total + log_prob[:, range(B), y]
        return total

    def objective(self) -> Tensor:
        return (self.probability.unsqueeze(1) * self.log_likelihoods()).sum()

    def log_p(self) -> Tensor:
        return (self.probability.log().unsqueeze(1) + self.log_likelihoods()).logsumexp(0).sum()

    def check(self, ours: Tensor, value: Callable[[], Tensor]) -> None:
        """Value and every gradient."""
        torch.testing.assert_close(ours, value(), rtol=0.0, atol=1e-11)
        gradient = flat_gradient(value(), self.model)
        torch.testing.assert_close(
            flat_gradient(ours, self.model), gradient, rtol=1e-10, atol=1e-11
        )
        assert float(gradient.abs().min()) > 1e-5  # every parameter is felt


@sizes
@pytest.mark.parametrize("kind", [NoisinELBO, Trace_ELBO])
def test_every_mask_by_the_objective(kind: Any, layers: int, steps: int) -> None:
    """Masks stand in the batch and are given to the sites; their probability is a scale."""
    case = Dropout(layers, steps)
    spread = float(case.model.rnn.spread[0].detach())
    distribution = NOISE.distribution(double(1.0), double(spread))
    torch.testing.assert_close(distribution.enumerate_support(), double([0.0, 1 / KEEP]))

    number = len(case.masks)
    x, y = (part.repeat_interleave(number, 1) for part in (case.x, case.y))
    epsilon = (case.masks[:, 0] - KEEP) / math.sqrt(KEEP * (1 - KEEP))
    given = poutine.Trace()
    for layer in range(layers):
        value = epsilon[:, layer].movedim(0, 1).repeat(1, B, 1)  # (T, B·M, H)
        name = f"rnn.noise_{layer}"
        given.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    with poutine.scale(scale=case.probability.repeat(B)), poutine.replay(trace=given):
        loss = kind().differentiable_loss(case.model, case.guide, x, y)
    case.check(-loss, case.objective)


@pytest.mark.parametrize("sites", ["sequence", "timestep"])
def test_noisin_elbo_draws_the_masks_as_often_as_they_are_probable(sites: str) -> None:
    """The largest t of the value and all gradients exceeds the limit once in 10⁵ seeds or less."""
    case = Dropout(1, 3, sites=sites)
    elbo = NoisinELBO(500, vectorize_particles=True)
    draws = []
    for _ in range(30):
        value = -elbo.differentiable_loss(case.model, case.guide, case.x, case.y)
        draws.append(torch.cat([value.detach()[None], flat_gradient(value, case.model)]))
    value = case.objective()
    truth = torch.cat([value.detach()[None], flat_gradient(value, case.model)])
    assert float(t_statistics(torch.stack(draws), truth).abs().max()) < NO_CHANCE


class Joint(dist.Independent):
    """A distribution of independent units that lists the values of all units together."""

    has_rsample = False  # TraceEnum_ELBO weights a listed value by its score-function part only

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return bool(self.base_dist.has_enumerate_support)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        units, values = self.event_shape[0], self.base_dist.enumerate_support()
        rows = itertools.product(range(len(values)), repeat=units)
        return torch.stack([values[row, ..., range(units)].movedim(0, -1) for row in rows])


class Joined(Messenger):
    """Lets a noise site be enumerated, as :class:`Joint`."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], dist.Independent) and not msg["is_observed"]:
            msg["fn"] = Joint(msg["fn"].base_dist, 1)


def enumerable(program: Any) -> Any:
    # Pyro's deterministic sites are float32 whatever the model, which TraceEnum_ELBO refuses.
    def hidden(site: Any) -> bool:
        return bool(site["infer"].get("_deterministic")) if site["type"] == "sample" else False

    return config_enumerate(Joined()(poutine.block(program, hide_fn=hidden)))


def by_trace_enum(case: Dropout, program: Any, guide: Any) -> Tensor:
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    return -elbo.differentiable_loss(program, guide, case.x, case.y)


@sizes
@pytest.mark.parametrize("noise_to", ["both", "output"])
def test_every_mask_by_trace_enum_elbo(layers: int, steps: int, noise_to: str) -> None:
    """Listed in the guide, the masks give the objective; in the model, log p(y)."""
    case = Dropout(layers, steps, sites="timestep", noise_to=noise_to)
    program = enumerable(case.model)
    case.check(by_trace_enum(case, program, enumerable(case.guide)), case.objective)
    case.check(by_trace_enum(case, program, lambda *args: None), case.log_p)
    assert float((case.log_p() - case.objective()).detach()) > 0.3


def test_where_trace_enum_elbo_does_not_reach() -> None:
    """Why the last test needs :class:`Joint`, and sites per timestep.

    Pyro enumerates no distribution of several units, and ``to_event`` makes one of each: it draws
    instead, and warns. And a plate tells it that what stands in it is independent, so it lists
    the ε of all steps in parallel, never one step's against another's: right for one layer whose
    noise is not fed back, and wrong, without a word, for one whose noise is.
    """
    case = Dropout(1, 2, sites="timestep")
    with pytest.warns(UserWarning, match="found no sample sites configured for enumeration"):
        hidden = poutine.block(case.model, hide=["rnn.z_0", "rnn.state"])
        by_trace_enum(case, hidden, config_enumerate(case.guide))
    for noise_to in ("output", "both"):
        case = Dropout(1, 2, sites="sequence", noise_to=noise_to)
        claimed = by_trace_enum(case, enumerable(case.model), lambda *args: None)
        excess = float((claimed - case.log_p()).detach())
        assert abs(excess) > 0.01 if noise_to == "both" else abs(excess) < 1e-11
