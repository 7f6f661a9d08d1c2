"""Benchmarks in a zip file: verified, cut where they are cut, against a web server here."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from noisin_pyro.text.corpora import CORPORA, load_corpus
from noisin_pyro.text.corpora.archives import ENWIK8, TEXT8, WIKITEXT103, PublishedArchive
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.download import PublishedFile
from noisin_pyro.text.corpora.published import PublishedCorpus
from tests.text.conftest import Site
from tests.text.corpora import TEXTS, one_sentence, refusal


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def archive(data: bytes, kind: PublishedArchive, **changes: object) -> PublishedArchive:
    """A benchmark like one of the three, but for its bytes."""
    file = replace(kind.file, sha256=hashlib.sha256(data).hexdigest())
    return replace(kind, file=file, **changes)  # type: ignore[arg-type]


def test_one_text_is_cut_in_bytes(tmp_path: Path) -> None:
    data = zipped(enwik8="aé a\nbé".encode())
    (tmp_path / "enwik8.zip").write_bytes(data)
    corpus = archive(data, ENWIK8, cuts=(2, 6)).load(tmp_path)
    assert corpus.vocabulary.words == ("<0xC3>", "a", "<eos>", "<unk>")  # "a" and half of "é"
    assert [len(corpus.split(name)) for name in Texts._fields] == [2, 4, 3]
    words = archive(data, ENWIK8, cuts=(3, 6)).load(tmp_path, tokens="words")
    assert words.vocabulary.tokens == "words" and words.vocabulary.decode(words.train) == [
        "aé",
        "<eos>",
    ]


def test_text8_has_characters(tmp_path: Path) -> None:
    data = zipped(text8=b" anarchism originated as")
    (tmp_path / "text8.zip").write_bytes(data)
    corpus = archive(data, TEXT8, cuts=(10, 15)).load(tmp_path)
    assert (corpus.name, corpus.vocabulary.tokens) == ("text8", "characters")
    texts = [
        corpus.vocabulary.join(corpus.vocabulary.decode(corpus.split(name)))
        for name in ("train", "valid", "test")
    ]
    assert texts == [" anarchism", " <unk>ri<unk>", "ina<unk><unk><unk> as"]


def test_three_members(tmp_path: Path) -> None:
    members = {f"wikitext-103/wiki.{k}.tokens": v.encode() for k, v in TEXTS._asdict().items()}
    data = zipped(**members)
    (tmp_path / "wikitext-103-v1.zip").write_bytes(data)
    corpus = archive(data, WIKITEXT103).load(tmp_path)
    words = corpus.vocabulary.decode(corpus.train)
    assert words == ["a", "b", "a", "c", "<eos>", "<eos>", "a", "b", "<eos>"]


def test_an_archive_is_found_beside_what_it_was_unpacked_to(tmp_path: Path) -> None:
    data = zipped(text8=b" anarchism originated as")
    (tmp_path / "text8").mkdir()
    (tmp_path / "text8.zip").write_bytes(data)
    beside = archive(data, TEXT8, cuts=(10, 15)).load(tmp_path)
    (tmp_path / "text8.zip").rename(tmp_path / "text8" / "text8.zip")
    assert archive(data, TEXT8, cuts=(10, 15)).load(tmp_path).sha256 == beside.sha256


def test_another_file_is_refused(tmp_path: Path) -> None:
    assert "lacks text8.zip; give the folder that holds it" in refusal("text8", tmp_path)
    (tmp_path / "text8.zip").write_bytes(zipped(text8=b"a b c"))
    message = refusal("text8", tmp_path)
    assert "text8.zip has SHA-256" in message and TEXT8.file.sha256 in message


def test_a_member_that_grows_is_not_unpacked(tmp_path: Path) -> None:
    data = zipped(text8=bytes(10_000))
    (tmp_path / "text8.zip").write_bytes(data)
    with pytest.raises(ValueError, match="text8 of .* has more than 9,999 bytes"):
        archive(data, TEXT8, most_bytes=9_999).load(tmp_path)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_download(
    site: tuple[Site, PublishedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    server, here = site
    data = zipped(text8=b"a cat sat on a mat")
    corpus = archive(data, TEXT8, cuts=(6, 12), base_url=here.base_url)
    server.send("text8.zip", b"<html>Sign in</html>")
    with pytest.raises(
        ValueError, match=r"text8.zip sent something whose SHA-256 is not"
    ) as caught:
        corpus.load()
    assert one_sentence(str(caught.value).replace(here.base_url, "").replace("text8.zip", ""))
    assert not list(tmp_path.rglob("*.zip"))
    server.send("text8.zip", data)
    assert len(corpus.load().train) == 6
    corpus.load()
    assert server.asked == ["/text8.zip"] * 2, "a verified file in the cache is not fetched again"
    assert [path.name for path in tmp_path.rglob("*.zip")] == ["text8.zip"]
    small = replace(corpus, file=PublishedFile("other.zip", "0" * 64, most_bytes=len(data) - 1))
    server.send("other.zip", data)
    with pytest.raises(ValueError, match=f"sent more than {len(data) - 1:,} bytes"):
        small.download(tmp_path / "small")
    assert not list((tmp_path / "small").rglob("*.zip"))


def test_their_addresses_and_limits() -> None:
    for corpus in (TEXT8, ENWIK8, WIKITEXT103):
        assert CORPORA[corpus.name] is corpus
        assert re.fullmatch("[0-9a-f]{64}", corpus.file.sha256)
        assert corpus.file.most_bytes <= 0.5 * corpus.most_bytes < 400_000_000


@pytest.mark.parametrize("name", ["text8", "enwik8", "wikitext-103"])
def test_bad_data_dir(name: str, tmp_path: Path) -> None:
    assert f"{name.removesuffix('-103')}" in refusal(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="lacks"):
        load_corpus(name, tmp_path)
