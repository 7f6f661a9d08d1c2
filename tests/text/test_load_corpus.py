"""A corpus by its name or its path, and one sentence for bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noisin_pyro.text.corpora import CORPORA, Corpus, load_corpus
from noisin_pyro.text.corpora.download import Published
from noisin_pyro.text.corpora.published import PTB
from noisin_pyro.text.sources import NAMES, PUBLISHED
from tests.text.corpora import TEXTS, refusal, sentences, write


def test_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", **TEXTS._asdict())
    corpus = load_corpus(folder, min_count=2)
    assert corpus.name == "mine"
    assert corpus.vocabulary == Corpus.from_texts("mine", TEXTS, min_count=2).vocabulary
    assert torch.equal(load_corpus(str(folder)).train, Corpus.from_texts("mine", TEXTS).train)


def test_one_file_is_cut_in_order(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}\n" for number in range(25)))
    corpus = load_corpus(path, min_count=1)
    assert corpus.name == "text.txt"
    assert sentences(corpus, "train") == [f"line {number}" for number in range(20)]
    assert len(corpus.valid) == 2 * 3 and len(corpus.test) == 3 * 3
    assert set(sentences(corpus, "test")) == {"line <unk>"}


def test_a_folder_may_have_the_name_of_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "hmm", **TEXTS._asdict())
    monkeypatch.chdir(tmp_path)
    assert len(load_corpus(Path("hmm")).vocabulary) == len(load_corpus("./hmm").vocabulary) == 5
    assert len(load_corpus("hmm").vocabulary) == 502


def test_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    folder = write(tmp_path, **{**TEXTS._asdict(), "train": b"\xef\xbb\xbfa b\n"})
    assert load_corpus(folder).vocabulary.words == ("<eos>", "a", "b", "<unk>")


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"a b\xff\n", "valid.txt is not UTF-8 (byte 0xff at 3)"),
        (b"\x89PNG\0\0\n", "valid.txt is binary"),
        (b"", "valid.txt is empty"),
        (b" \n\n", "valid.txt is empty"),
    ],
    ids=["latin", "binary", "empty", "blank"],
)
def test_bad_file(content: bytes, rule: str, tmp_path: Path) -> None:
    assert rule in refusal(write(tmp_path, **{**TEXTS._asdict(), "valid": content}))


def test_bad_path(tmp_path: Path) -> None:
    assert "ptb, pydoc, text8, wikitext-103, wikitext-2" in refusal("ptbb") and "'ptbb'" in refusal(
        "ptbb"
    )
    assert "does not exist" in refusal(tmp_path / "nowhere.txt")
    assert "lacks train.txt, valid.txt, test.txt" in refusal(tmp_path)
    assert "lacks valid.txt, test.txt" in refusal(write(tmp_path, train="a\n"))
    assert "at least 10 lines to be split 80/10/10, got 1" in refusal(tmp_path / "train.txt")


@pytest.mark.parametrize("corpus", ["pydoc", "hmm", Path("text.txt")])
def test_data_dir_of_a_corpus_that_reads_none(corpus: str | Path) -> None:
    message = refusal(corpus, "somewhere")
    assert (
        "published corpora (enwik8, ptb, text8, wikitext-103, wikitext-2), got somewhere" in message
    )
    assert "leave it out" in message


@pytest.mark.parametrize("corpus", ["pydoc", "hmm"])
def test_bad_min_count(corpus: str) -> None:
    assert "min_count must be at least 1, got 0" in refusal(corpus, min_count=0)


def test_registry_is_read_only() -> None:
    known = ["enwik8", "hmm", "ptb", "pydoc", "text8", "wikitext-103", "wikitext-2"]
    assert list(CORPORA) == known
    with pytest.raises(TypeError):
        CORPORA["mine"] = PTB  # type: ignore[index]


def test_the_names_known_without_torch_are_those_of_the_corpora() -> None:
    published = tuple(name for name, source in CORPORA.items() if isinstance(source, Published))
    assert (tuple(CORPORA), published) == (NAMES, PUBLISHED)
