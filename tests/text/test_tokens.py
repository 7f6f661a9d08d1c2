"""Characters and bytes: spelled without whitespace, read back exactly, counted as bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from noisin_pyro import LanguageModel, NoisyRNN, Vocabulary, evaluate, load_corpus
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.tokenise import count_tokens, encode_text
from noisin_pyro.tokens import Tokens, code_of, join, spell, split
from tests.text.corpora import TEXTS, refusal, write

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
kinds = pytest.mark.parametrize("tokens", ["characters", "bytes"])


@kinds
def test_every_code_has_a_spelling_of_its_own(tokens: Tokens) -> None:
    codes = range(256 if tokens == "bytes" else 0x11000)
    words = [spell(code, tokens) for code in codes]
    assert len(set(words)) == len(words) and "<unk>" not in words
    assert [code_of(word) for word in words] == list(codes)
    assert all(word.split() == [word] for word in words)


@kinds
@given(text=TEXT)
@example(text="a\r\nb \t\x00\u2028\U0001f600<unk><eos><0x20>")
@settings(deadline=None)
def test_a_text_comes_back(tokens: Tokens, text: str) -> None:
    words = split(text, tokens)
    assert join(words, tokens) == text
    assert len(words) == len(text.encode() if tokens == "bytes" else text)


@kinds
@given(train=TEXT, other=TEXT)
@settings(deadline=None)
def test_a_whole_text_is_read_as_a_short_one(tokens: Tokens, train: str, other: str) -> None:
    train, other = train.removeprefix("\ufeff"), other.removeprefix("\ufeff")
    vocabulary = Vocabulary.build(count_tokens(train, tokens), tokens=tokens)
    assert vocabulary == Vocabulary.build(split(train, tokens), tokens=tokens)
    for text in (train, other):
        ids = encode_text(text, vocabulary)
        assert ids.dtype == torch.int64
        assert torch.equal(ids, vocabulary.encode(vocabulary.split(text)))
    assert vocabulary.join(vocabulary.decode(encode_text(train, vocabulary))) == train


def test_a_word_may_contain_the_name_of_the_end_of_a_line() -> None:
    words = ["a<eos>", "b", "<eos>", "<eos>", "c"]
    assert join(words, "words") == "a<eos> b\n\nc"
    assert split(join(words, "words"), "words") == words


def test_parts_of_a_long_text_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "aé\U0001f600 b\n" * 20
    kinds: tuple[Tokens, ...] = ("characters", "bytes")
    whole = {kind: count_tokens(text, kind) for kind in kinds}
    monkeypatch.setattr("noisin_pyro.text.corpora.tokenise._PART", 7)
    for kind, counts in whole.items():
        assert count_tokens(text, kind) == counts
        vocabulary = Vocabulary.build(counts, tokens=kind)
        ids = encode_text(text, vocabulary)
        assert vocabulary.join(vocabulary.decode(ids)) == text


def test_words_are_those_between_whitespace() -> None:
    text = "\ufeffa  b\r\n\n c"
    vocabulary = Vocabulary.build(count_tokens(text, "words"))
    words = vocabulary.decode(encode_text(text, vocabulary))
    assert words == ["a", "b", "<eos>", "<eos>", "c", "<eos>"]


def test_every_byte_can_be_known() -> None:
    text = bytes(range(256)).decode("utf-8", "surrogateescape") + "\n"
    corpus = Corpus.from_texts("all", Texts(text, text, "\udcff"), tokens="bytes")
    assert corpus.vocabulary.decode(corpus.test) == ["<0xFF>"]


def test_bytes_cut_within_a_character_are_kept() -> None:
    data = "é".encode()
    texts = Texts(*(part.decode("utf-8", "surrogateescape") for part in (data, data[:1], data[1:])))
    corpus = Corpus.from_texts("cut", texts, tokens="bytes")
    words = [corpus.vocabulary.decode(corpus.split(name)) for name in Texts._fields]
    assert words == [["<0xC3>", "<0xA9>"], ["<0xC3>"], ["<0xA9>"]]
    assert Corpus.from_texts("cut", texts, tokens="characters").train.shape == (1,)


@kinds
def test_a_corpus_of_them(tokens: Tokens, tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path, **TEXTS._asdict()), tokens=tokens)
    assert corpus.vocabulary.words == ("<0x20>", "<eos>", "a", "b", "c", "<unk>")
    assert corpus.vocabulary.join(corpus.vocabulary.decode(corpus.train)) == TEXTS.train
    assert corpus.vocabulary.decode(corpus.test) == ["c", "<0x20>", "<unk>", "<eos>"]
    corpus.vocabulary.save(tmp_path / "vocabulary.txt")
    assert Vocabulary.load(tmp_path / "vocabulary.txt", tokens) == corpus.vocabulary
    assert Vocabulary.load(tmp_path / "vocabulary.txt") != corpus.vocabulary


def test_corpora_that_are_made_of_words_can_be_read_so() -> None:
    hmm = load_corpus("hmm", tokens="characters")
    assert hmm.optimal_perplexity is None and len(hmm.vocabulary) == 14
    assert len(load_corpus("pydoc", tokens="bytes").vocabulary) <= 256 + 2  # with <unk> and <eos>


@pytest.mark.parametrize(
    ("words", "tokens", "rule"),
    [
        (("<unk>", "<eos>", "ab"), "characters", "a vocabulary of characters cannot hold 'ab'"),
        (("<unk>", "<eos>", "<0x61>"), "characters", "cannot hold '<0x61>'"),
        (("<unk>", "<eos>", "<0x3C0>"), "bytes", "a vocabulary of bytes cannot hold '<0x3C0>'"),
        (("<unk>", "<eos>", "<0x>"), "bytes", "cannot hold '<0x>'"),
        (("<unk>", "<eos>"), "letters", "one of words, characters, bytes, got 'letters'"),
    ],
)
def test_refusals(words: tuple[str, ...], tokens: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Vocabulary(words, tokens)


def test_unknown_tokens() -> None:
    assert "tokens must be one of words, characters, bytes, got 'x'" in refusal("hmm", tokens="x")


def test_bits() -> None:
    """A model that knows nothing needs log2 K bits for each of K characters."""
    model = LanguageModel(8, NoisyRNN(4, 5))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    fit = evaluate(model, torch.randint(8, (100,)))
    assert math.isclose(fit.bits, 3.0, rel_tol=1e-6) and math.isclose(fit.perplexity, 2**fit.bits)
