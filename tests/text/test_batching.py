"""Streams and windows: every token in its place, every target exactly once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisin_pyro.text.batching import streams, window_count, windows

SIZES = st.integers(2, 60)
BATCHES = st.integers(1, 9)
UNROLLS = st.integers(1, 12)


@given(SIZES, BATCHES)
@settings(deadline=None)
def test_streams_are_contiguous_pieces_in_order(size: int, batch_size: int) -> None:
    tokens = torch.arange(size)
    if size < 2 * batch_size:
        with pytest.raises(ValueError, match=f"{size} tokens is shorter than one batch"):
            streams(tokens, batch_size)
        return
    stream = streams(tokens, batch_size)
    assert stream.shape == (size // batch_size, batch_size)
    assert stream.is_contiguous()
    assert stream.T.flatten().tolist() == list(range(size - size % batch_size))


@given(SIZES, BATCHES, UNROLLS)
@settings(deadline=None)
def test_overlapping_streams_predict_every_token_once(
    size: int, batch_size: int, unroll: int
) -> None:
    tokens = torch.arange(size)
    if size - 1 < batch_size:
        with pytest.raises(ValueError, match="shorter than one batch"):
            streams(tokens, batch_size, overlap=True)
        return
    stream = streams(tokens, batch_size, overlap=True)
    predicted = sorted(int(y) for _, ys in windows(stream, unroll) for y in ys.flatten())
    assert predicted == list(range(1, len(predicted) + 1))
    assert 0 <= (size - 1) - len(predicted) < batch_size


def test_a_single_stream_keeps_everything() -> None:
    tokens = torch.randint(9, (17,), generator=torch.Generator().manual_seed(0))
    for overlap in (False, True):
        assert torch.equal(streams(tokens, 1, overlap=overlap), tokens[:, None])


@given(st.integers(2, 40), st.integers(1, 4), UNROLLS)
@settings(deadline=None)
def test_windows_cover_the_stream_in_order(length: int, batch_size: int, unroll: int) -> None:
    stream = torch.arange(length * batch_size).reshape(length, batch_size)
    pairs = list(windows(stream, unroll))
    assert torch.equal(torch.cat([x for x, _ in pairs]), stream[:-1])
    assert torch.equal(torch.cat([y for _, y in pairs]), stream[1:])
    assert all(x.shape == y.shape for x, y in pairs)
    assert [len(x) for x, _ in pairs[:-1]] == [unroll] * (len(pairs) - 1)
    assert 1 <= len(pairs[-1][0]) <= unroll
    assert len(pairs) == window_count(stream, unroll)


@given(st.integers(2, 40), UNROLLS, st.data())
@settings(deadline=None)
def test_an_interrupted_epoch_goes_on_where_it_was(
    length: int, unroll: int, data: st.DataObject
) -> None:
    stream = torch.arange(length).reshape(length, 1)
    start = data.draw(st.integers(0, window_count(stream, unroll)))
    whole = [(x.tolist(), y.tolist()) for x, y in windows(stream, unroll)]
    rest = [(x.tolist(), y.tolist()) for x, y in windows(stream, unroll, start)]
    assert rest == whole[start:]


def test_windows_are_views() -> None:
    stream = torch.arange(12).reshape(6, 2)
    x, y = next(windows(stream, 3))
    stream[1] = -1
    assert x[1].tolist() == y[0].tolist() == [-1, -1]


def test_bad_input() -> None:
    other: Any
    for other in (torch.zeros(9).numpy(), [0, 1, 2]):
        with pytest.raises(TypeError, match=r"a tensor, got (ndarray|list); use torch.as_tensor"):
            streams(other, 1)
    with pytest.raises(ValueError, match=r"shape \(N,\), got \(2, 3\)"):
        streams(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        streams(torch.zeros(9), 0)
    stream = torch.zeros(9, 2)
    with pytest.raises(ValueError, match="unroll must be at least 1, got 0"):
        windows(stream, 0)
    for start in (-1, 5):
        with pytest.raises(ValueError, match=f"start must lie in 0 to 4, .* got {start}"):
            windows(stream, 2, start)
    for bad in (torch.zeros(9), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match="L at least 2"):
            window_count(bad, 3)
