"""A whole text to token ids: words line by line, characters and bytes as arrays.

A benchmark may have a hundred million tokens, so a list of their strings is never built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from noisin_pyro.tokens import EOS, UNK, Tokens, code_of, spell
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["count_tokens", "encode_text"]

_PART = 1 << 24  # characters converted at a time


def count_tokens(text: str, tokens: Tokens) -> Mapping[str, int]:
    """How often each word, character or byte occurs.

    Args:
        text: the raw text.
        tokens: what to count. If words, every line ends in ``<eos>``.

    Example:
        >>> dict(count_tokens("a b a\\n", "words"))
        {'a': 2, 'b': 1, '<eos>': 1}
        >>> dict(count_tokens("a a\\n", "characters"))
        {'<eos>': 1, '<0x20>': 1, 'a': 2}
    """
    if tokens == "words":
        return Counter(_words(text))
    counts = np.zeros(1, np.int64)
    for part in _codes(text, tokens):
        more = np.bincount(part, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return {spell(int(code), tokens): int(counts[code]) for code in counts.nonzero()[0]}


def encode_text(text: str, vocabulary: Vocabulary) -> Tensor:
    """The ids of a text's words, characters or bytes.

    Args:
        text: the raw text.
        vocabulary: the vocabulary; a token that is not in it becomes ``<unk>``.

    Returns:
        Ids, int64, with shape (N,).
    """
    if vocabulary.tokens == "words":
        return vocabulary.encode(_words(text))
    codes = {code_of(word): index for word, index in vocabulary.ids.items() if word != UNK}
    known = {code: index for code, index in codes.items() if code is not None}
    table = np.full(max(known) + 2, vocabulary.ids[UNK], np.int64)
    table[list(known)] = list(known.values())
    parts = [table.take(part, mode="clip") for part in _codes(text, vocabulary.tokens)]
    return torch.from_numpy(np.concatenate(parts) if parts else table[:0])


def _words(text: str) -> Iterator[str]:
    """The words of a text between whitespace, and ``<eos>`` after every line, the last one too."""
    start, end = _begin(text), len(text.removesuffix("\n"))
    while start <= end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop
        yield from text[start:stop].split()
        yield EOS
        start = stop + 1


def _codes(text: str, tokens: Tokens) -> Iterator[np.ndarray]:
    """The codes of the characters, or the bytes, of a text, part by part."""
    for start in range(_begin(text), len(text), _PART):
        part = text[start : start + _PART]
        if tokens == "bytes":
            yield np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)
        else:
            yield np.frombuffer(part.encode("utf-32-le", "surrogatepass"), np.uint32)


def _begin(text: str) -> int:
    return int(text.startswith("\ufeff"))  # a byte order mark is no word
