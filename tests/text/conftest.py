"""A web site on this machine, from which corpora are downloaded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from noisin_pyro.text.corpora.published import PublishedCorpus
from tests.text.corpora import TEXTS, published


class Site:
    """What the server answers, by path, and what it was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []

    def send(self, name: str, text: str | bytes, missing: int = 0, status: int = 200) -> None:
        """Answers a request for `name`; breaks off when all but `missing` bytes are sent."""
        body = text.encode() if isinstance(text, str) else text

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) - missing])

        self.answers[f"/{name}"] = answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, PublishedCorpus]]:
    """A web site that serves the tiny corpus correctly, and the corpus that points there."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            site.answers[self.path](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for split, text in TEXTS._asdict().items():
        site.send(f"tiny.{split}.txt", text)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site, replace(published(), base_url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    gc.collect()  # pooch leaves the socket of a broken download to the garbage collector
