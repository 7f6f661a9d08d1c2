"""Published corpora: the figures of the paper's Table 1, from the files themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.published import PTB, WIKITEXT2
from tests.text.corpora import TEXTS, published, published_folder, refusal, write


@pytest.mark.parametrize(
    "name, tokens, vocabulary, oov_percent",
    [
        ("ptb", (929_589, 73_760, 82_430), 10_000, 4.8),
        ("wikitext-2", (2_088_628, 217_646, 245_569), 33_278, 2.6),
    ],
)
def test_published_figures(
    name: str, tokens: tuple[int, ...], vocabulary: int, oov_percent: float
) -> None:
    corpus = load_corpus(name, published_folder(name))
    statistics = corpus.statistics()
    assert tuple(statistics[split] for split in Texts._fields) == tokens
    assert statistics["vocabulary"] == len(corpus.vocabulary) == vocabulary
    assert round(100 * corpus.oov_rate, 1) == oov_percent
    assert corpus.name == name


def test_published_files_are_found_under_each_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.train.txt").write_text(TEXTS.train)
    (tmp_path / "valid").write_text(TEXTS.valid)
    (tmp_path / "tiny.test.txt").write_text(TEXTS.test)
    (tmp_path / "test").write_text("another test text, behind the usual name")
    assert published().load(tmp_path).sha256 == Corpus.from_texts("tiny", TEXTS).sha256


def test_published_files_may_lie_in_a_folder_with_the_name_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    for split, text in TEXTS._asdict().items():
        (tmp_path / "tiny" / f"tiny.{split}.txt").write_text(text)
    assert published().load(tmp_path).sha256 == published().load(tmp_path / "tiny").sha256


def test_usual_names_of_the_published_files_are_known() -> None:
    usual = {"ptb.train.txt", "train.txt"}, {"wiki.train.tokens", "train.txt"}
    for corpus, names in zip((PTB, WIKITEXT2), usual, strict=True):
        assert {corpus.train.name, *corpus.train.aliases} == names
        assert corpus.base_url.startswith("https://raw.githubusercontent.com/")
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in corpus.files)


def test_a_published_name_with_another_text_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, **TEXTS._asdict())
    message = refusal("ptb", folder)
    assert "train.txt has SHA-256" in message and PTB.train.sha256 in message
    assert "give its folder as the corpus" in message
    assert load_corpus(folder).sha256 == Corpus.from_texts("tiny", TEXTS).sha256


@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_bad_data_dir(name: str, tmp_path: Path) -> None:
    missing = refusal(name, tmp_path / "nowhere")
    assert "nowhere is not a folder; give the folder that holds" in missing
    empty = refusal(name, tmp_path)
    assert all(f"{split}.txt" in empty for split in Texts._fields)
    one_of_three = refusal(name, write(tmp_path, train="a\n"))
    assert "lacks" in one_of_three and "train.txt" not in one_of_three
