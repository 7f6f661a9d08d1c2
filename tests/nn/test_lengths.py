"""Lengths as they come out of other people's data sets."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, Multiplicative
from noisin_pyro.lengths import filled, length_mask
from noisin_pyro.nn.registry import RNNS, build_rnn
from tests.helpers import flat

T, B, D, H = 5, 3, 4, 6
NOISES = [None, Additive(dist.Normal(0.0, 1.0)), Multiplicative(dist.Normal(0.0, 1.0))]
noises = pytest.mark.parametrize("noise", NOISES, ids=["none", "additive", "multiplicative"])


@noises
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integers_will_do(dtype: torch.dtype, noise: Any) -> None:
    """Bytes in particular, which torch takes for a mask where it is indexed by them."""
    rnn = build_rnn("lstm", D, H, 2, noise=noise, bidirectional=True)
    x, lengths = torch.randn(T, B, D), torch.tensor([5, 1, 3])
    found = []
    for given in (lengths, lengths.to(dtype), lengths.tolist()):
        torch.manual_seed(0)
        found.append(flat(rnn(x, lengths=given)))
    for ours, *others in zip(*found):
        assert all(torch.equal(ours, theirs) for theirs in others)


def test_padding_of_targets_becomes_the_first_target_of_its_sequence() -> None:
    """Also in the first sequence, with an event dimension, and for several particles."""
    targets = torch.tensor([[[3.0], [4.0]], [[torch.nan], [5.0]]])  # (T, B, 1)
    mask = length_mask(torch.tensor([1, 2]), 2).unsqueeze(-1)
    expected = torch.tensor([[[3.0], [4.0]], [[3.0], [5.0]]])
    assert torch.equal(filled(targets, mask), expected)
    assert torch.equal(filled(targets.expand(6, -1, -1, -1), mask), expected.expand(6, -1, -1, -1))


@pytest.mark.parametrize("noise", NOISES[1:], ids=["additive", "multiplicative"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_epsilon_for_all_sequences(bidirectional: bool, noise: Any) -> None:
    rnn = build_rnn("lstm", D, H, 2, noise=noise, bidirectional=bidirectional)
    x, lengths = torch.randn(T, B, D), torch.tensor([5, 1, 3])
    one = rnn.draw_noise(T, 1)
    each = [epsilon.expand(T, B, H) for epsilon in one]
    ours, theirs = (flat(rnn(x, lengths=lengths, epsilon=given)) for given in (one, each))
    for pair in zip(ours, theirs):
        torch.testing.assert_close(*pair)


@noises
@pytest.mark.parametrize("cell", RNNS)
def test_no_sequences(cell: str, noise: Any) -> None:
    """A batch without sequences, as a filter leaves it, gives one without states."""
    rnn = build_rnn(cell, D, H, 2, noise=noise)
    for lengths in (None, torch.zeros(0, dtype=torch.long)):
        output, state = rnn(torch.randn(T, 0, D), lengths=lengths)
        assert output.shape == (T, 0, H)
        assert all(part.shape == (2, 0, H) for part in flat(state))
        output.sum().backward()
