"""One generative process: the fast ways to run it against the loop that reads like the paper.

The readable form is ``sites="timestep"``, a Python loop over :meth:`Cell.step` with a sample
site for each z_t. A handler gives it the noise ε that the sequence sites drew, so that it
computes z_t = loc + scale · ε_t by itself: outputs, final states, log joint and every gradient
must then agree, up to the change of variables −Σ log |∂z/∂ε|.
"""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from noisin_pyro import Multiplicative, NormalEmission, SequenceModel
from noisin_pyro.lengths import length_mask
from tests.helpers import flat, probed
from tests.proofs.rnns import NOISES, B, D, H, assert_close, build, cells, noises, start

# layers, steps, noise_to, lengths
SETTINGS = [
    (1, 1, "both", None),
    (1, 2, "output", None),
    (2, 7, "both", None),
    (2, 7, "both", (3, 7, 1)),
    (3, 2, "both", (2, 1, 2)),
    (3, 7, "output", (7, 2, 5)),
]


class Driven(Messenger):
    """Gives each site z_{layer}_{t} the value loc + scale · ε_t of its own parameters."""

    def __init__(self, epsilons: list[Tensor]) -> None:
        super().__init__()
        self.epsilons = epsilons

    def _pyro_sample(self, msg: Any) -> None:
        prefix, layer, step = (msg["name"].split("_") + ["", ""])[:3]
        if prefix.rpartition(".")[2] == "z" and step:
            distribution = msg["fn"].base_dist
            epsilon = self.epsilons[int(layer)][..., int(step) : int(step) + 1, :, :]
            msg["value"], msg["done"] = distribution.loc + distribution.scale * epsilon, True


@cells
@noises
def test_sequence_sites_equal_timestep_sites(cell: str, noise: Any) -> None:
    """Hence folding and scan equal the step loop: each cell and noise takes one of the two."""
    every = isinstance(noise.base, dist.Normal)
    for layers, steps, noise_to, lengths in SETTINGS if every else SETTINGS[1:4:2]:
        compare(cell, noise, layers, steps, noise_to, lengths, torch.float64)


@cells
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_sequence_sites_equal_timestep_sites_in_single_precision(cell: str, noise: str) -> None:
    compare(cell, NOISES[noise], 2, 7, "both", (3, 7, 1), torch.float32)


def compare(
    cell: str,
    noise: Any,
    layers: int,
    steps: int,
    noise_to: str,
    lengths: Any,
    dtype: torch.dtype,
) -> None:
    lengths = None if lengths is None else torch.tensor(lengths)
    x = torch.randn(steps, B, D, dtype=dtype, requires_grad=True)
    y = torch.randn(steps, B, 2, dtype=dtype)
    state = start(cell, layers, dtype)
    emission = NormalEmission(H, 2).to(dtype)
    models = {
        sites: SequenceModel(
            nn.Identity(),
            build(cell, layers, noise, dtype, noise_to=noise_to, sites=sites),
            emission,
        )
        for sites in ("sequence", "timestep")
    }
    models["timestep"].load_state_dict(models["sequence"].state_dict())
    mask = 1 if lengths is None else length_mask(lengths, steps).unsqueeze(-1).to(dtype)

    def inputs(model: Any) -> list[Tensor]:
        return [x, *flat(state), *model.parameters()]

    pyro.clear_param_store()
    sequence = poutine.trace(models["sequence"]).get_trace(x, y, state, lengths)
    epsilons = [sequence.nodes[f"rnn.noise_{layer}"]["value"] for layer in range(layers)]
    zs = [sequence.nodes[f"rnn.z_{layer}"]["value"] for layer in range(layers)]
    final = flat(sequence.nodes["_RETURN"]["value"][1])
    log_joint = log_density(sequence, mask)

    pyro.clear_param_store()
    timestep = poutine.trace(Driven(epsilons)(models["timestep"])).get_trace(x, y, state, lengths)
    sites = [[f"rnn.z_{layer}_{t}" for t in range(steps)] for layer in range(layers)]
    drawn = [torch.cat([timestep.nodes[site]["value"] for site in names]) for names in sites]
    loop_zs = [z * mask for z in drawn]
    loop_final = flat(timestep.nodes["_RETURN"]["value"][1])
    loop_log_joint = log_density(timestep, mask)

    # −Σ log |∂z/∂ε|; a unit at h = 0 (ReLU) has no density under multiplicative noise: its value
    # is 0, and the density of its ε does not count
    expected = log_joint
    discrete = noise.base.support.is_discrete
    for z, epsilon, spread in zip(zs, epsilons, models["sequence"].rnn.spread):
        scale = spread.expand_as(z)
        if isinstance(noise, Multiplicative):
            scale = scale * z / (1 + spread * epsilon)  # γ h
        still = scale == 0
        jacobian = 0 if discrete else torch.where(still, 1, scale).abs().log()
        density = noise.standardized(x).log_prob(epsilon)
        expected = expected - (mask * torch.where(still, density, jacobian)).sum()

    assert_close([*zs, *final], [*loop_zs, *loop_final], dtype)
    assert_close([expected], [loop_log_joint], dtype)
    ours = probed([*zs, *final, expected])
    theirs = probed([*loop_zs, *loop_final, loop_log_joint])
    gradients = torch.autograd.grad(ours, inputs(models["sequence"]), retain_graph=True)
    loop_gradients = torch.autograd.grad(theirs, inputs(models["timestep"]))
    assert_close(list(gradients), list(loop_gradients), dtype)
    assert all(bool(gradient.any()) for gradient in gradients)  # nothing is left out

    # the same by conditioning on z itself, which the loop then reads as given
    if discrete or cell == "relu":  # whose z, rounded, would miss the points of their distribution
        return
    values = {
        site: (z * mask + other * (1 - mask))[t : t + 1].detach()
        for names, z, other in zip(sites, zs, drawn)
        for t, site in enumerate(names)
    }
    conditioned = poutine.trace(poutine.condition(models["timestep"], values))
    again: Any = conditioned.get_trace(x, y, state, lengths).log_prob_sum()
    assert_close([again], [loop_log_joint], dtype)


def log_density(trace: Any, mask: Any) -> Tensor:
    """The log-density of all sites but for the padding, whose noise keeps its prior.

    Args:
        trace: of either form of the model.
        mask: 1, or 1 within the sequences and 0 past their ends, with shape (T, B, 1).
    """
    trace.compute_log_prob()
    total = torch.zeros(())
    for name in trace.stochastic_nodes + trace.observation_nodes:
        step = re.fullmatch(r"rnn\.z_\d+_(\d+)", name)
        rows = mask if step is None or isinstance(mask, int) else mask[int(step[1])]
        inside = rows if isinstance(rows, int) else rows.squeeze(-1)
        total = total + (inside * trace.nodes[name]["log_prob"]).sum()
    return total
