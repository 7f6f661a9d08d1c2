"""A corpus: a vocabulary, and the token ids of three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from noisin_pyro.text.corpora.tokenise import count_tokens, encode_text
from noisin_pyro.tokens import UNK, Tokens
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["Corpus", "Texts"]


class Texts(NamedTuple):
    """The raw text of the three splits, one sentence or paragraph per line."""

    train: str
    valid: str
    test: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in three splits, as token ids.

    Attributes:
        name: its name in tables and records.
        vocabulary: the tokens of the training split.
        train: token ids, int64, with shape (N_train,).
        valid: token ids, int64, with shape (N_valid,).
        test: token ids, int64, with shape (N_test,).
        sha256: SHA-256 of the raw texts in UTF-8, joined by NUL bytes; in a shell ``(cat train.txt;
            printf '\\0'; cat valid.txt; printf '\\0'; cat test.txt) | sha256sum``.
        optimal_perplexity: the lowest possible perplexity on ``test``; None if it is not known.

    Example:
        >>> corpus = Corpus.from_texts("tiny", ("a b a\\nb a\\n", "a c\\n", "b a\\n"))
        >>> corpus.vocabulary.decode(corpus.valid)
        ['a', '<unk>', '<eos>']
        >>> corpus.statistics()
        {'train': 7, 'valid': 3, 'test': 3, 'vocabulary': 4, 'oov_rate': 0.0}
    """

    name: str
    vocabulary: Vocabulary
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    sha256: str
    optimal_perplexity: float | None = None

    @classmethod
    def from_texts(
        cls, name: str, texts: tuple[str, str, str], min_count: int = 1, tokens: Tokens = "words"
    ) -> Corpus:
        """Tokenises three texts: words stand between whitespace, and every line ends in ``<eos>``.

        An empty line is an ``<eos>`` too; Penn Treebank and WikiText-2 then have the published
        numbers of tokens. If tokens are characters or bytes, ``<eos>`` is the newline.

        Args:
            name: the corpus's name.
            texts: the raw texts (train, valid, test).
            min_count: words that occur fewer times in the training text become ``<unk>``.
            tokens: what a token is.

        Raises:
            TypeError: if ``texts`` is a single text.
            ValueError: if a text holds no word, or ``min_count`` is below 1.
        """
        if isinstance(texts, str):
            raise TypeError(
                f"a corpus needs three texts (train, valid, test), got one of {len(texts):,} "
                "characters; split it, or write it to a file and give load_corpus the path"
            )
        texts = Texts(*texts)
        for split, text in texts._asdict().items():
            if not text.strip():
                raise ValueError(
                    f"the {split} split of {name} holds no word; every split needs at least one"
                )
        vocabulary = Vocabulary.build(count_tokens(texts.train, tokens), min_count, tokens)
        train, valid, test = (encode_text(text, vocabulary) for text in texts)
        raw = "\0".join(texts).encode("utf-8", "surrogateescape")
        return cls(name, vocabulary, train, valid, test, hashlib.sha256(raw).hexdigest())

    def split(self, name: str) -> Tensor:
        """Token ids of one split, with shape (N,).

        Raises:
            ValueError: if there is no such split.
        """
        if name not in Texts._fields:
            raise ValueError(f"split must be one of {', '.join(Texts._fields)}, got {name!r}")
        tokens: Tensor = getattr(self, name)
        return tokens

    @property
    def oov_rate(self) -> float:
        """The share of ``<unk>`` among all training tokens, ``<eos>`` included.

        This is the reading of "OoV rate" under which the files give the 4.8 % (Penn Treebank)
        and 2.6 % (WikiText-2) of the paper's Table 1; over all splits they would be 4.9 % and
        3.2 %, and without ``<eos>`` 5.1 % and 2.7 %.
        """
        return (self.train == self.vocabulary.ids[UNK]).double().mean().item()

    def statistics(self) -> dict[str, int | float]:
        """The corpus's column of the paper's Table 1: tokens per split, vocabulary, OoV rate."""
        tokens = {split: len(self.split(split)) for split in Texts._fields}
        return {**tokens, "vocabulary": len(self.vocabulary), "oov_rate": self.oov_rate}
