"""The documentation tells the truth: its code runs, its options exist, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyro
import pytest
import torch

import noisin_pyro
from noisin_pyro.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COPIED = {"_build", "jupyter_execute", "notebooks", "results"}
PAGES = [
    path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in COPIED
]
LONG = {"tutorial.md"}


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def with_code() -> list[Any]:
    return [
        pytest.param(path, marks=pytest.mark.slow if path.name in LONG else (), id=path.stem)
        for path in PAGES
        if blocks(path)
    ]


@pytest.mark.parametrize("path", with_code())
def test_the_code_of_a_page_runs_from_top_to_bottom(path: Path) -> None:
    torch.manual_seed(0)
    pyro.clear_param_store()
    names: dict[str, Any] = {}
    for block in blocks(path):
        block = re.sub(r"^epochs = \d+$", "epochs = 1", block, flags=re.MULTILINE)
        exec(compile(block, str(path), "exec"), names)


def test_the_options_exist() -> None:
    known = {field.name for field in fields(TrainConfig)}
    known |= {"config", "print_config", "help", "trials", "storage"}
    found = {
        option
        for path in PAGES
        for line in re.findall(r"noisin (?:train|tune)[^\n`]*", path.read_text(encoding="utf-8"))
        for option in re.findall(r"--(\w+)", line)
    }
    assert found and found <= known, found - known


class Page(HTMLParser):
    """What a page of the site is called, what it links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.title, self.ids, self.links = "", set[str](), list[str]()
        self.loaded: list[str] = []
        self.alts: list[str] = []
        self._in_title = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self._in_title = tag == "title"
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "img":
            self.alts.append(given.get("alt", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data.strip()
            self._in_title = False


@pytest.fixture(scope="module")
def site() -> dict[Path, Page]:
    """The pages of the built site by their paths, but for the listings of source code."""
    if missing := [
        name for name in ("sphinx", "furo", "myst_nb") if not importlib.util.find_spec(name)
    ]:
        pytest.skip(f"needs {', '.join(missing)}: pip install -c constraints.txt -e '.[docs]'")
    built = DOCS / "_build"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(DOCS), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    paths = [path for path in built.rglob("*.html") if "_static" not in path.parts]
    return {path: Page(path) for path in paths}


@pytest.mark.slow
def test_every_page_has_a_title(site: dict[Path, Page]) -> None:
    assert len(site) > 40
    titles = {path.name: page.title for path, page in site.items()}
    assert not [name for name, title in titles.items() if not title or "<no title>" in title]


@pytest.mark.slow
def test_no_internal_link_is_dead(site: dict[Path, Page]) -> None:
    dead = []
    for path, page in site.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (
                anchor and target.suffix == ".html" and anchor not in site[target].ids
            ):
                dead.append(f"{path.name}: {link}")
    assert not dead


@pytest.mark.slow
def test_every_picture_says_what_it_shows(site: dict[Path, Page]) -> None:
    alts = [(path.name, alt) for path, page in site.items() for alt in page.alts]
    assert len(alts) > 30
    assert not [(name, alt) for name, alt in alts if not alt or alt.endswith(".png")]


@pytest.mark.slow
def test_formulas_have_their_operators(site: dict[Path, Page]) -> None:
    """latex2mathml writes "~" and ";" as identifiers, and no space between log and p."""
    text = next(path for path in site if path.name == "method.html").read_text(encoding="utf-8")
    assert "<mo>&#x0223C;</mo>" in text and "<mo>;</mo>" in text
    assert '<mi>log</mi><mspace width="0.17em"/><mi>p</mi>' in text
    assert "<mi>;</mi>" not in text and "<mi>&#x0007E;</mi>" not in text


@pytest.mark.slow
def test_no_page_needs_the_network(site: dict[Path, Page]) -> None:
    loaded = [(path.name, link) for path, page in site.items() for link in page.loaded]
    allowed = [(name, link) for name, link in loaded if not urlsplit(link).netloc]
    assert loaded == allowed


@pytest.mark.slow
def test_every_public_name_has_an_entry(site: dict[Path, Page]) -> None:
    reference = [page for path, page in site.items() if path.parent.name == "api"]
    ids = {name for page in reference for name in page.ids}
    assert not {f"noisin_pyro.{name}" for name in noisin_pyro.__all__} - ids
