"""Downloads, against a web server on this machine."""

from __future__ import annotations

import contextlib
import gzip
import re
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.text.corpora.download import MOST_BYTES, _Limited
from noisin_pyro.text.corpora.published import PublishedCorpus
from tests.text.conftest import Site
from tests.text.corpora import TEXTS, one_sentence, published


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*") if path.is_file())


def test_download_is_verified_and_done_once(
    site: tuple[Site, PublishedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    server, corpus = site
    loaded = corpus.load()
    assert loaded.sha256 == Corpus.from_texts("tiny", TEXTS).sha256
    files = ["tiny.test.txt", "tiny.train.txt", "tiny.valid.txt"]
    assert names_in(tmp_path / "noisin_pyro" / "tiny") == files == names_in(tmp_path)
    assert len(server.asked) == 3
    corpus.load()
    assert len(server.asked) == 3, "a verified file in the cache is not fetched again"
    (tmp_path / "noisin_pyro" / "tiny" / "tiny.train.txt").write_text("<html>")
    assert corpus.load().sha256 == loaded.sha256
    assert server.asked[3:] == ["/tiny.train.txt"], "a damaged one is"


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    "fault, reason",
    [
        ({"text": "<html>Sign in to the hotel's network</html>"}, "SHA-256 is not"),
        ({"text": "<html>Not found</html>", "status": 404}, "HTTP 404"),
        ({"text": "<html>Try later</html>", "status": 503}, "HTTP 503"),
        ({"text": TEXTS.valid, "missing": 2}, "cannot be downloaded"),
    ],
    ids=["error page", "not found", "overloaded", "interrupted"],
)
def test_failed_download_leaves_nothing_and_can_be_repeated(
    fault: dict[str, object], reason: str, site: tuple[Site, PublishedCorpus], tmp_path: Path
) -> None:
    pytest.importorskip("pooch")
    server, corpus = site
    server.send("tiny.valid.txt", **fault)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=reason) as caught:
        corpus.download(tmp_path)
    message = str(caught.value)
    assert f"{corpus.base_url}/tiny.valid.txt" in message and "--data_dir" in message
    assert one_sentence(message.replace(corpus.base_url, ""))
    assert names_in(tmp_path) == ["tiny.train.txt"], "what was right stays, what was wrong does not"
    server.send("tiny.valid.txt", TEXTS.valid)
    assert names_in(corpus.download(tmp_path)) == sorted(file.name for file in corpus.files)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_download_has_a_limit_also_where_it_is_compressed(
    site: tuple[Site, PublishedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    server, corpus = site
    written = []
    write = _Limited.write
    monkeypatch.setattr(
        _Limited, "write", lambda self, data: [written.append(len(data)), write(self, data)][1]
    )
    bomb = gzip.compress(bytes(4 * MOST_BYTES), compresslevel=1)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(bomb)

    server.answers["/tiny.valid.txt"] = answer
    with pytest.raises(ValueError, match="sent more than 50,000,000 bytes"):
        corpus.download(tmp_path)
    assert sum(written) < 1.1 * MOST_BYTES and names_in(tmp_path) == ["tiny.train.txt"]


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ValueError, match=r"127.0.0.1:9/tiny.train.txt cannot .* \(ConnectionError"):
        published().download(tmp_path)


def test_download_without_pooch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=re.escape('pip install "noisin-pyro[lm]"')):
        load_corpus("ptb")
