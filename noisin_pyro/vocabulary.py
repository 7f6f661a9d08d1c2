"""The vocabulary of a model: from tokens to ids and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisin_pyro.atomic import replacing
from noisin_pyro.plain_text import read_text
from noisin_pyro.tokens import EOS, TOKENS, UNK, Tokens, code_of, join, spell, split

__all__ = ["Vocabulary"]


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """The words of a language model; a word's id is its index.

    :meth:`build` sorts words by falling frequency, then alphabetically, so that a text
    determines its vocabulary.

    Args:
        words: all words in the order of their ids, ``<unk>`` and ``<eos>`` among them.
        tokens: the kind of the words. Characters and bytes have the form of
            ``noisin_pyro.tokens.spell``.

    Raises:
        TypeError: if a word is no string.
        ValueError: if a word occurs twice, is empty or contains whitespace, if a word among
            characters or bytes does not have their form, or if ``<unk>`` or ``<eos>`` is missing.

    Example:
        >>> vocabulary = Vocabulary.build("the cat saw the dog <eos>".split())
        >>> vocabulary.words
        ('the', '<eos>', 'cat', 'dog', 'saw', '<unk>')
        >>> vocabulary.encode(["the", "dog", "barked"])
        tensor([0, 3, 5])
        >>> vocabulary.decode([0, 3, 5])
        ['the', 'dog', '<unk>']
        >>> "barked" in vocabulary, len(vocabulary)
        (False, 6)
    """

    words: tuple[str, ...]
    tokens: Tokens = "words"

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, got {self.tokens!r}")
        for special in (UNK, EOS):
            if special not in self.words:
                raise ValueError(f"a vocabulary must hold {special}; add it to the words")
        word, count = Counter(self.words).most_common(1)[0]
        if count > 1:
            raise ValueError(f"words must be distinct, got {word!r} {count} times; keep one of it")
        for word in self.words:
            _check_string(word)
            if word.split() != [word]:
                raise ValueError(
                    f"a word must be non-empty and without whitespace, got {word!r}; split it"
                )
            if "\0" in word or not _is_unicode(word):  # no file of words can hold it
                raise ValueError(
                    f"a word must be Unicode without NUL, got {word!r}; remove it from the text"
                )
            if self.tokens != "words" and word != UNK:
                code = code_of(word)
                if (
                    code is None
                    or spell(code, self.tokens) != word
                    or (self.tokens == "bytes" and code > 255)
                ):
                    raise ValueError(f"a vocabulary of {self.tokens} cannot hold {word!r}")

    @classmethod
    def build(
        cls, words: Iterable[str] | Mapping[str, int], min_count: int = 1, tokens: Tokens = "words"
    ) -> Vocabulary:
        """The vocabulary of a text, which should be the training split alone.

        Args:
            words: the text's words in order, ``<eos>`` included, or a mapping from each word to its
                count.
            min_count: words that occur fewer times become ``<unk>``.
            tokens: the kind of the words.

        Raises:
            TypeError: if a word is no string.
            ValueError: if ``min_count`` is below 1.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}; 1 keeps every word")
        counts = Counter({UNK: 0, EOS: 0})
        for word, count in Counter(words).items():
            _check_string(word)
            counts[word if count >= min_count or word == EOS else UNK] += count
        return cls(tuple(sorted(counts, key=lambda word: (-counts[word], word))), tokens)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The mapping from each word to its id."""
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, words: Iterable[str]) -> Tensor:
        """The ids of words; a word that is not in the vocabulary gets the id of ``<unk>``.

        Args:
            words: N words.

        Returns:
            Their ids, int64, with shape (N,).

        Raises:
            TypeError: if ``words`` is a string, which Python would iterate letter by letter.
        """
        if isinstance(words, str):
            raise TypeError(f"encode takes a list of words, got the string {words!r}; split it")
        ids, unknown = self.ids, self.ids[UNK]
        array = np.fromiter((ids.get(word, unknown) for word in words), dtype=np.int64)
        return torch.from_numpy(array)

    def split(self, text: str) -> list[str]:
        """Splits a short text, such as a prompt, into words of this vocabulary's kind."""
        return split(text, self.tokens)

    def join(self, words: Iterable[str]) -> str:
        """The text of a sequence of words, such as :meth:`split` and :meth:`decode` return."""
        return join(words, self.tokens)

    def decode(self, ids: Tensor | Iterable[int]) -> list[str]:
        """The words of ids.

        Args:
            ids: N ids, as a tensor with shape (N,) or as integers.

        Returns:
            N words.

        Raises:
            ValueError: if an id is negative or not below the size of the vocabulary.
        """
        indices = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for index in indices:
            if not 0 <= index < len(self):
                raise ValueError(
                    f"an id must lie in 0 to {len(self) - 1}, got {index}; "
                    "decode with the vocabulary that encoded"
                )
        return [self.words[index] for index in indices]

    def save(self, path: str | Path) -> None:
        """Writes a file with one word per line; it is complete or unchanged at any time."""
        with replacing(Path(path)) as temporary:
            temporary.write_bytes("".join(f"{word}\n" for word in self.words).encode())

    @classmethod
    def load(cls, path: str | Path, tokens: Tokens = "words") -> Vocabulary:
        """Reads a file that :meth:`save` wrote.

        Args:
            path: the file.
            tokens: the kind of its words, which the file does not contain.

        Raises:
            ValueError: if the file is missing or is not such a list of words.
        """
        lines = read_text(Path(path)).removesuffix("\n").split("\n")
        try:
            return cls(tuple(lines), tokens)
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.ids

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} {self.tokens})"


def _is_unicode(word: str) -> bool:
    """Whether UTF-8 has the word, which it has not if half of a surrogate pair stands alone."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_string(word: object) -> None:
    if not isinstance(word, str):
        raise TypeError(f"a word must be a string, got {word!r}; use str()")
