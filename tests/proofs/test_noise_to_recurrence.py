"""Noise that only the recurrence reads (``noise_to="recurrence"``), against a loop written out."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from noisin_pyro import Additive, Multiplicative, NoisyLSTM
from tests.helpers import flat, make_rnn

NOISES = (Additive(dist.Normal(0.0, 1.0)), Multiplicative(dist.Bernoulli(0.7)))


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 2, 4])])
def test_noise_to_the_recurrence_is_the_same_by_timestep_and_by_sequence(
    name: str, noise: Any, lengths: Tensor | None
) -> None:
    options = {"noise": noise, "spread": 0.6, "noise_to": "recurrence", "dtype": torch.float64}
    rnn = make_rnn(name, 3, 4, 2, **options)
    stepped = make_rnn(name, 3, 4, 2, sites="timestep", **options)
    stepped.load_state_dict(rnn.state_dict())
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    trace = poutine.trace(rnn).get_trace(x, lengths=lengths)
    z, state = trace.nodes["_RETURN"]["value"]
    data = {
        f"z_{layer}_{t}": trace.nodes[f"z_{layer}"]["value"][t : t + 1].detach()
        for layer in range(2)
        for t in range(5)
    }
    again = poutine.condition(stepped, data)(x, lengths=lengths)
    torch.testing.assert_close(again[0], z)
    for ours, theirs in zip(flat(again[1]), flat(state)):
        torch.testing.assert_close(ours, theirs)
    # What is handed up is clean: it is not the noisy state that the next step reads.
    top = trace.nodes["z_1"]["value"]
    inside = torch.ones(5, 3, 1, dtype=torch.bool)
    if lengths is not None:
        inside = (torch.arange(5).unsqueeze(1) < lengths).unsqueeze(-1)
    assert not torch.isclose(z, top)[inside.expand_as(z)].all()


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "relu", "sigmoid", "identity"])
def test_noise_to_the_recurrence_is_a_loop_written_out(name: str, noise: Any) -> None:
    """Values and gradients, with the noise given."""
    rnn = make_rnn(name, 3, 4, noise=noise, spread=0.6, noise_to="recurrence", dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    epsilon = rnn.draw_noise(5, 3)
    mult, add = noise.affine(epsilon[0], rnn.spread[0])
    output, final = rnn(x, epsilon=epsilon)
    (weights,) = rnn._weights()
    z, *clean = (x.new_zeros(3, size) for size in rnn.cell.state_sizes(4))
    outputs = []
    for t, gates in enumerate(rnn.cell.project(x, weights)):
        h, *clean = rnn.cell.step(gates, (z, *clean), weights)
        outputs.append(h)
        z = h if mult is None else h * mult[t]
        z = z if add is None else z + add[t]
    truth = torch.stack(outputs)
    torch.testing.assert_close(output, truth)
    torch.testing.assert_close(flat(final)[0][0], z)
    weight = torch.randn_like(truth)
    parameters = list(rnn.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((output * weight).sum() + flat(final)[0].sum(), parameters),
        torch.autograd.grad((truth * weight).sum() + z.sum(), parameters),
    ):
        torch.testing.assert_close(ours, theirs)


def test_noise_to_the_recurrence_carries_the_noisy_state() -> None:
    """Two windows are one long sequence."""
    rnn = NoisyLSTM(
        3, 4, 2, noise=NOISES[0], spread=0.6, noise_to="recurrence", dtype=torch.float64
    )
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    epsilon = rnn.draw_noise(8, 2)
    whole, end = rnn(x, epsilon=epsilon)
    first, state = rnn(x[:5], epsilon=[None if e is None else e[:5] for e in epsilon])
    second, last = rnn(x[5:], state, epsilon=[None if e is None else e[5:] for e in epsilon])
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, end)
