"""``hf:NAME`` from folders of this machine, without the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from tests.text.corpora import TEXTS, refusal, sentences, write


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if shown:
        datasets.enable_progress_bars()


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", **TEXTS._asdict())
    corpus = load_corpus(f"hf:{folder}")
    ours = Corpus.from_texts("mine", TEXTS)
    assert corpus.vocabulary == ours.vocabulary and corpus.sha256 == ours.sha256
    assert all(torch.equal(corpus.split(name), ours.split(name)) for name in Texts._fields)
    characters = load_corpus(f"hf:{folder}", tokens="characters", min_count=2)
    assert characters.vocabulary.words == ("<0x20>", "<eos>", "a", "b", "<unk>")


def test_one_split_is_cut_and_a_column_is_found(tmp_path: Path) -> None:
    rows = "".join(f'{{"number": {n}, "content": "line {n}"}}\n' for n in range(20))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text(rows)
    corpus = load_corpus(f"hf:{tmp_path / 'mine'}", min_count=1)
    assert sentences(corpus, "train") == [f"line {number}" for number in range(16)]
    assert len(corpus.valid) == len(corpus.test) == 2 * 3


def test_refusals(tmp_path: Path) -> None:
    assert "cannot be loaded" in refusal("hf:nobody/nothing")
    two = write(tmp_path / "two", train="a\n", test="b\n")
    assert "must have the splits train, validation and test, or train alone, got train, test" in (
        refusal(f"hf:{two}")
    )
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns" / "train.jsonl").write_text('{"a": "x", "b": "y"}\n')
    message = refusal(f"hf:{tmp_path / 'columns'}")
    assert "must have a column 'text', or one column of text, got a, b" in message
    assert "data_dir is for published corpora" in refusal(f"hf:{two}", "somewhere")


def test_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "noisin-pyro\[hf\]"'):
        load_corpus("hf:nobody/nothing")
