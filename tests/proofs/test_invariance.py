"""What must not change the numbers: cutting a sequence, particles, padding, the device."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from noisin_pyro import Additive, MeanParameterized
from noisin_pyro.lengths import length_mask
from tests.helpers import flat, like_state_of, probed
from tests.proofs.rnns import (
    BASES,
    NOISES,
    B,
    D,
    H,
    assert_close,
    build,
    cells,
    gradients,
    noises,
    start,
)


@cells
@pytest.mark.parametrize("noise", ["additive-gamma", "multiplicative-gamma"])
@pytest.mark.parametrize("noise_to", ["both", "output"])
def test_segments_with_carried_state_equal_one_pass(cell: str, noise: str, noise_to: str) -> None:
    rnn = build(cell, 2, NOISES[noise], torch.float64, noise_to=noise_to)
    x = torch.randn(7, B, D, dtype=torch.float64, requires_grad=True)
    first = start(cell, 2, torch.float64)
    epsilon = rnn.draw_noise(7, B)
    whole, final = rnn(x, first, epsilon=epsilon)
    pieces, state = [], first
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        part, state = rnn(x[begin:end], state, epsilon=[e[begin:end] for e in epsilon])
        pieces.append(part)
    ours, theirs = [torch.cat(pieces), *flat(state)], [whole, *flat(final)]
    assert_close(ours, theirs, torch.float64)
    assert_close(gradients(rnn, ours, x, first), gradients(rnn, theirs, x, first), torch.float64)


@cells
@noises
def test_tied_noise_is_one_draw_for_every_step(cell: str, noise: Any) -> None:
    lengths = torch.tensor([4, 2, 3])
    tied = build(cell, 2, noise, torch.float64, tied=True)
    free = build(cell, 2, noise, torch.float64)
    free.load_state_dict(tied.state_dict())
    x, first = torch.randn(4, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    trace = poutine.trace(tied).get_trace(x, first, lengths=lengths)
    sites = [trace.nodes[f"noise_{layer}"] for layer in range(2)]
    for site in sites:
        assert site["value"].shape == (1, B, H)
        assert [frame.name for frame in site["cond_indep_stack"]] == ["batch"]
    epsilon = [site["value"].expand(4, B, H) for site in sites]
    ours = flat(trace.nodes["_RETURN"]["value"])
    theirs = flat(free(x, first, lengths=lengths, epsilon=epsilon))
    assert_close(ours, theirs, torch.float64)
    assert_close(gradients(tied, ours, first), gradients(free, theirs, first), torch.float64)


@cells
def test_a_mean_parameterized_normal_is_additive_noise(cell: str) -> None:
    """One distribution, also far outside (−1, 1), where noise can take a GRU's state."""
    x, first = torch.randn(4, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    first = like_state_of(cell, [3 * part for part in flat(first)])
    values = {
        f"z_{layer}_{t}": 3 * torch.randn(1, B, H, dtype=torch.float64)
        for layer, t in itertools.product(range(2), range(4))
    }
    log_joints: list[Any] = []
    for noise in (Additive(BASES["normal"]), MeanParameterized(dist.Normal)):
        torch.manual_seed(1)
        pyro.clear_param_store()
        rnn = build(cell, 2, noise, torch.float64, sites="timestep")
        trace = poutine.trace(poutine.condition(rnn, values)).get_trace(x, first)
        log_joints.append(trace.log_prob_sum())
    assert_close(log_joints[:1], log_joints[1:], torch.float64)


@cells
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_particles_are_separate_passes(cell: str, sites: str, kind: str) -> None:
    """(S, T, B, H) from a plate of particles, with a carried state for each of them."""
    particles, steps, lengths = 2, 3, torch.tensor([3, 1, 2])
    noise = [None, NOISES[f"{kind}-gamma"], NOISES[f"{kind}-normal"]]
    options = {"tied": kind == "additive" and sites == "sequence", "sites": sites}
    rnn = build(cell, 3, noise, torch.float64, **options)
    x = torch.randn(steps, B, D, dtype=torch.float64, requires_grad=True)
    carried = start(cell, 3, torch.float64, particles)
    with pyro.plate("particles", particles, dim=-3):
        traced = poutine.trace(rnn).get_trace(x, carried, lengths=lengths)
    output, final = traced.nodes["_RETURN"]["value"]
    assert output.shape == (particles, steps, B, H)
    assert all(part.shape == (particles, 3, B, H) for part in flat(final))
    names = set(traced.stochastic_nodes) - {"time", "batch", "particles"}
    drawn = {name: traced.nodes[name]["value"] for name in names}
    pyro.clear_param_store()
    with pyro.plate("particles", particles, dim=-3), poutine.condition(data=drawn):
        observed = poutine.trace(rnn).get_trace(x, carried, lengths=lengths)
    observed.compute_log_prob()
    singles = []
    for particle in range(particles):
        values = {name: value[particle] for name, value in drawn.items()}
        state = tuple(part[particle] for part in flat(carried))
        pyro.clear_param_store()
        single = poutine.trace(poutine.condition(rnn, values)).get_trace(
            x, like_state_of(cell, state), lengths=lengths
        )
        singles.append(flat(single.nodes["_RETURN"]["value"]))
        for name in values:
            log_prob = observed.nodes[name]["log_prob"][particle]
            single.compute_log_prob()
            torch.testing.assert_close(log_prob, single.nodes[name]["log_prob"])
    ours = flat(output, final)
    theirs = [torch.stack(parts) for parts in zip(*singles)]
    assert_close(ours, theirs, torch.float64)
    assert_close(
        gradients(rnn, ours, x, carried), gradients(rnn, theirs, x, carried), torch.float64
    )


@cells
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_padding_is_never_read(cell: str, sites: str, noise: str) -> None:
    """Not even where it is NaN: neither values nor gradients."""
    lengths = torch.tensor([2, 4, 1])
    rnn = build(cell, 2, NOISES[noise], torch.float64, sites=sites)
    first = start(cell, 2, torch.float64)
    x = torch.randn(4, B, D, dtype=torch.float64)
    results = []
    for filling in (0.0, torch.nan):
        given = x.masked_fill(~length_mask(lengths, 4).unsqueeze(-1), filling).requires_grad_()
        torch.manual_seed(1)
        outputs = flat(rnn(given, first, lengths=lengths))
        results.append([*outputs, *gradients(rnn, outputs, given, first)])
        torch.manual_seed(1)
        results[-1] += flat(rnn(given, first, lengths=lengths, sample=False))
    for zero, nan in zip(*results):
        assert torch.equal(zero, nan)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@cells
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_on_a_gpu(cell: str, noise: str) -> None:
    """cuDNN's kernels and the scan give the CPU's numbers; lengths may stay on the CPU."""
    rnn = build(cell, 2, NOISES[noise], torch.float64)
    x, first = torch.randn(5, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    lengths = torch.tensor([5, 1, 3])
    epsilon = rnn.draw_noise(5, B)
    reference = flat(rnn(x, first, lengths=lengths, epsilon=epsilon))
    expected = gradients(rnn, reference)
    rnn.cuda()
    moved = tuple(part.detach().cuda() for part in flat(first))
    outputs = flat(
        rnn(
            x.cuda(),
            like_state_of(cell, moved),
            lengths=lengths,
            epsilon=[e.cuda() for e in epsilon],
        )
    )
    ours = torch.autograd.grad(probed([part.cpu() for part in outputs]), list(rnn.parameters()))
    assert_close([part.cpu() for part in [*outputs, *ours]], [*reference, *expected], torch.float64)
    assert all(e.is_cuda for e in rnn.draw_noise(5, B, lengths))
