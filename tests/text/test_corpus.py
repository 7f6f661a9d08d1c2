"""Three texts to a corpus: its vocabulary, its line ends, its hash."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.corpora.corpus import Texts
from tests.text.corpora import TEXTS


def test_corpus_has_the_vocabulary_of_the_training_split_and_an_eos_per_line() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    assert Corpus.from_texts("tiny", (TEXTS.train, TEXTS.valid, TEXTS.test)).sha256 == corpus.sha256
    words = corpus.vocabulary.decode(corpus.train)
    assert words == ["a", "b", "a", "c", "<eos>", "<eos>", "a", "b", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["c", "<unk>", "<eos>"]
    assert corpus.vocabulary.words == ("<eos>", "a", "b", "c", "<unk>")
    for name in Texts._fields:
        split = corpus.split(name)
        assert split.dtype == torch.int64 and split.dim() == 1 and split.is_contiguous()
    assert corpus.split("valid") is corpus.valid
    assert corpus.optimal_perplexity is None


def test_rare_training_words_are_the_oov_rate() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS, min_count=2)
    assert corpus.oov_rate == 1 / 9  # "c", once among six words and three <eos>
    assert corpus.statistics() == {
        "train": 9,
        "valid": 3,
        "test": 3,
        "vocabulary": 4,
        "oov_rate": 1 / 9,
    }


def test_line_ends_of_any_system_and_an_unfinished_last_line_count_alike() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    dos = Corpus.from_texts("tiny", Texts(*(text.replace("\n", "\r\n") for text in TEXTS)))
    bare = Corpus.from_texts("tiny", Texts(*(text.removesuffix("\n") for text in TEXTS)))
    for other in (dos, bare):
        assert other.vocabulary == corpus.vocabulary
        assert all(torch.equal(other.split(name), corpus.split(name)) for name in Texts._fields)


def test_sha256_is_the_documented_one_and_sees_split_boundaries() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    assert corpus.sha256 == hashlib.sha256("\0".join(TEXTS).encode()).hexdigest()
    moved = Texts(train=TEXTS.train + TEXTS.valid, valid=TEXTS.test, test="c d\n")
    assert Corpus.from_texts("tiny", moved).sha256 != corpus.sha256


def test_corpus_refuses() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    with pytest.raises(ValueError, match="one of train, valid, test, got 'dev'"):
        corpus.split("dev")
    with pytest.raises(ValueError, match="the valid split of tiny holds no word"):
        Corpus.from_texts("tiny", TEXTS._replace(valid="\n \n"))
    one: Any = TEXTS.train
    with pytest.raises(TypeError, match=r"three texts \(train, valid, test\), got one of"):
        Corpus.from_texts("tiny", one)
