"""Words to ids and back."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisin_pyro import Vocabulary

# Letters of words as a text file may hold them: no whitespace, no NUL.
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])


@given(st.lists(st.sampled_from(["a", "b", "ß", ".", "<unk>", "<eos>"])), st.integers(1, 4))
@settings(deadline=None)
def test_vocabulary_is_ordered_complete_and_deterministic(words: list[str], min_count: int) -> None:
    vocabulary = Vocabulary.build(words, min_count)
    assert Vocabulary.build(sorted(words, reverse=True), min_count) == vocabulary
    counts = Counter(words)
    kept = {word for word in words if counts[word] >= min_count} | {"<unk>", "<eos>"}
    assert set(vocabulary.words) == kept
    ids = vocabulary.encode(words)
    frequency = torch.bincount(ids, minlength=len(vocabulary)).tolist()
    order = [(-count, word) for count, word in zip(frequency, vocabulary.words, strict=True)]
    assert order == sorted(order)
    assert vocabulary.decode(ids) == [word if word in kept else "<unk>" for word in words]


@given(words=st.lists(st.text(LETTERS, min_size=1), max_size=5))
@settings(max_examples=30, deadline=None)
def test_vocabulary_survives_its_file(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "vocabulary.txt"
    vocabulary = Vocabulary.build(words)
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert os.listdir(path.parent) == ["vocabulary.txt"]


def test_interrupted_save_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vocabulary.txt"
    old = Vocabulary(("<unk>", "<eos>", "old"))
    old.save(path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary(("<unk>", "<eos>", "new")).save(path)
    assert Vocabulary.load(path) == old
    assert os.listdir(tmp_path) == ["vocabulary.txt"]


@pytest.mark.parametrize(
    "words, rule",
    [
        (("a", "<eos>"), "must hold <unk>"),
        (("a", "<unk>"), "must hold <eos>"),
        (("<unk>", "<eos>", "a", "a"), "'a' 2 times"),
        (("<unk>", "<eos>", "a b"), "'a b'"),
        (("<unk>", "<eos>", ""), "''"),
    ],
)
def test_vocabulary_refuses(words: tuple[str, ...], rule: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        Vocabulary(words)
    path = tmp_path / "vocabulary.txt"
    path.write_text("".join(f"{word}\n" for word in words))
    with pytest.raises(ValueError, match="vocabulary.txt is not a vocabulary"):
        Vocabulary.load(path)


@pytest.mark.parametrize("word", ["a\0b", "a\ud800"])
def test_vocabulary_refuses_words_that_no_file_can_hold(word: str) -> None:
    with pytest.raises(ValueError, match="a word must be Unicode without NUL, got"):
        Vocabulary.build(["a", word, "<eos>"])


def test_vocabulary_refuses_what_would_go_wrong_in_silence() -> None:
    vocabulary = Vocabulary(("<unk>", "<eos>"))
    with pytest.raises(TypeError, match="the string 'the cat'"):
        vocabulary.encode("the cat")
    with pytest.raises(ValueError, match="0 to 1, got -1"):
        vocabulary.decode([-1])
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary.build([], min_count=0)
    words: Any
    for words in ([1, 2], [1, "a"]):
        with pytest.raises(TypeError, match="a word must be a string, got 1"):
            Vocabulary.build(words)
    words = ("<unk>", "<eos>", None)
    with pytest.raises(TypeError, match="a word must be a string, got None"):
        Vocabulary(words)
