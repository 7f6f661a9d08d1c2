"""The Python language reference as a corpus."""

from __future__ import annotations

import pytest
import torch

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from tests.text.corpora import sentences


@pytest.fixture(scope="module")
def pydoc() -> Corpus:
    return load_corpus("pydoc")


def test_pydoc_size(pydoc: Corpus) -> None:
    tokens = [len(pydoc.split(split)) for split in Texts._fields]
    assert 80_000 < sum(tokens) < 110_000
    assert 0.7 < tokens[0] / sum(tokens) < 0.9 and min(tokens) > 5_000
    assert 2_000 < len(pydoc.vocabulary) < 3_500
    assert 0.01 < pydoc.oov_rate < 0.03


def test_pydoc_tests_no_paragraph_that_was_trained_on() -> None:
    corpus = load_corpus("pydoc", min_count=1)
    train = sentences(corpus, "train")
    unseen = sentences(corpus, "valid") + sentences(corpus, "test")
    known = [line for line in unseen if "<unk>" not in line]  # those only could be in train
    assert len(known) > 150
    assert len({*train, *known}) == len(train) + len(known)
    assert corpus.oov_rate == 0
    assert not any("= = = =" in line or "- - - -" in line for line in train)


def test_pydoc_splits_share_their_distribution(pydoc: Corpus) -> None:
    train, test = (
        torch.bincount(tokens, minlength=len(pydoc.vocabulary)).double() / len(tokens)
        for tokens in (pydoc.train, pydoc.test)
    )
    assert (train - test).abs().sum() / 2 < 0.25  # cut contiguously instead: 0.32
    assert (pydoc.test == pydoc.vocabulary.ids["<unk>"]).double().mean() < 0.07
