"""Corpora: published figures, exact optima, verified downloads, and one sentence for bad input."""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import itertools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisin_pyro.text.corpora import CORPORA, Corpus, Vocabulary, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.hmm import HiddenMarkovLanguage
from noisin_pyro.text.corpora.published import (
    MOST_BYTES,
    PTB,
    WIKITEXT2,
    PublishedCorpus,
    PublishedFile,
    _Limited,
)
from noisin_pyro.text.sources import NAMES, PUBLISHED

DATA = Path(os.environ.get("NOISIN_DATA", Path(__file__).parents[3] / "shared" / "data"))
# Letters of words as a text file may hold them: no whitespace, no NUL.
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])
TEXTS = Texts(train="a b a c\n\na b\n", valid="b c\n", test="c d\n")


def one_sentence(message: str) -> bool:
    return "\n" not in message and not re.search(r"\. |\.$", message)


def refusal(*arguments: object, **options: object) -> str:
    """The one sentence with which load_corpus refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        load_corpus(*arguments, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert one_sentence(message), message
    return message


def write(folder: Path, **files: str | bytes) -> Path:
    """Writes ``train="a"`` to train.txt and so on."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.txt").write_bytes(data)
    return folder


# Vocabulary


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
        raise OSError("disk full")

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


def test_vocabulary_refuses_what_would_go_wrong_in_silence() -> None:
    vocabulary = Vocabulary(("<unk>", "<eos>"))
    with pytest.raises(TypeError, match="the string 'the cat'"):
        vocabulary.encode("the cat")
    with pytest.raises(ValueError, match="0 to 1, got -1"):
        vocabulary.decode([-1])
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary.build([], min_count=0)


# Corpus


def test_corpus_has_the_vocabulary_of_the_training_split_and_an_eos_per_line() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    words = corpus.vocabulary.decode(corpus.train)
    assert words == ["a", "b", "a", "c", "<eos>", "<eos>", "a", "b", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["c", "<unk>", "<eos>"]
    assert corpus.vocabulary.words == ("<eos>", "a", "b", "c", "<unk>")
    for name in Texts._fields:
        split = corpus.split(name)
        assert split.dtype == torch.int64 and split.dim() == 1 and split.is_contiguous()
    assert corpus.split("valid") is corpus.valid
    assert corpus.optimal_perplexity is None


def test_rare_training_words_are_the_oov_rate() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS, min_count=2)
    assert corpus.oov_rate == 1 / 9  # "c", once among six words and three <eos>
    assert corpus.statistics() == {
        "train": 9,
        "valid": 3,
        "test": 3,
        "vocabulary": 4,
        "oov_rate": 1 / 9,
    }


def test_line_ends_of_any_system_and_an_unfinished_last_line_count_alike() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    dos = Corpus.from_texts("tiny", Texts(*(text.replace("\n", "\r\n") for text in TEXTS)))
    bare = Corpus.from_texts("tiny", Texts(*(text.removesuffix("\n") for text in TEXTS)))
    for other in (dos, bare):
        assert other.vocabulary == corpus.vocabulary
        assert all(torch.equal(other.split(name), corpus.split(name)) for name in Texts._fields)


def test_sha256_is_the_documented_one_and_sees_split_boundaries() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    assert corpus.sha256 == hashlib.sha256("\0".join(TEXTS).encode()).hexdigest()
    moved = Texts(train=TEXTS.train + TEXTS.valid, valid=TEXTS.test, test="c d\n")
    assert Corpus.from_texts("tiny", moved).sha256 != corpus.sha256


def test_corpus_refuses() -> None:
    corpus = Corpus.from_texts("tiny", TEXTS)
    with pytest.raises(ValueError, match="one of train, valid, test, got 'dev'"):
        corpus.split("dev")
    with pytest.raises(ValueError, match="the valid split of tiny holds no word"):
        Corpus.from_texts("tiny", TEXTS._replace(valid="\n \n"))


# Published corpora: the figures of the paper's Table 1, from the files themselves


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
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; set NOISIN_DATA to the folder that holds it")
    corpus = load_corpus(name, DATA / name)
    statistics = corpus.statistics()
    assert tuple(statistics[split] for split in Texts._fields) == tokens
    assert statistics["vocabulary"] == len(corpus.vocabulary) == vocabulary
    assert round(100 * corpus.oov_rate, 1) == oov_percent
    assert corpus.name == name


def published(**files: str) -> PublishedCorpus:
    """A published corpus of tiny files, nowhere on the web."""
    texts = TEXTS._replace(**files)
    train, valid, test = (
        PublishedFile(f"tiny.{split}.txt", hashlib.sha256(text.encode()).hexdigest(), (split,))
        for split, text in texts._asdict().items()
    )
    return PublishedCorpus("tiny", "http://127.0.0.1:9", train, valid, test)


def test_published_files_are_found_under_each_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.train.txt").write_text(TEXTS.train)
    (tmp_path / "valid").write_text(TEXTS.valid)
    (tmp_path / "tiny.test.txt").write_text(TEXTS.test)
    (tmp_path / "test").write_text("another test text, behind the usual name")
    assert published().load(tmp_path).sha256 == Corpus.from_texts("tiny", TEXTS).sha256


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


# Download, against a web server on this machine


class Site:
    """What the server answers, by path, and what it was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []

    def send(self, name: str, text: str, missing: int = 0, status: int = 200) -> None:
        """Answers a request for `name`; breaks off when all but `missing` bytes are sent."""
        body = text.encode()

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


# pydoc


@pytest.fixture(scope="module")
def pydoc() -> Corpus:
    return load_corpus("pydoc")


def sentences(corpus: Corpus, split: str) -> list[str]:
    words = corpus.vocabulary.decode(corpus.split(split))
    return [line.strip() for line in " ".join(words).split("<eos>")[:-1]]


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


# hmm


def enumerate_paths(language: HiddenMarkovLanguage, symbols: list[int]) -> float:
    """p(symbols), summed over every path of hidden states."""
    total = 0.0
    for path in itertools.product(range(len(language.transition)), repeat=len(symbols)):
        probability, previous = 1.0, 0
        for state, symbol in zip(path, symbols, strict=True):
            probability *= language.transition[previous, state].item()
            probability *= language.emission[state, symbol].item()
            previous = state
        total += probability
    return total


def tiny_language(seed: int) -> HiddenMarkovLanguage:
    generator = torch.Generator().manual_seed(seed)
    return HiddenMarkovLanguage.draw(states=4, words=3, generator=generator)


@given(st.integers(0, 99), st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_forward_algorithm_equals_enumeration(seed: int, symbols: list[int]) -> None:
    language = tiny_language(seed)
    exact = enumerate_paths(language, symbols)
    assert math.isclose(language.log_prob(torch.tensor(symbols)).exp().item(), exact, rel_tol=1e-12)


def test_forward_algorithm_is_normalised_and_stays_so_over_a_long_text() -> None:
    language = tiny_language(0)
    texts = torch.tensor(list(itertools.product(range(4), repeat=3)))
    total = sum(language.log_prob(text).exp().item() for text in texts)
    assert math.isclose(total, 1, rel_tol=1e-12)

    symbols = language.sample(5_000, torch.Generator().manual_seed(1))
    belief, log_prob = torch.eye(4, dtype=torch.float64)[0], 0.0
    for symbol in symbols.tolist():  # the same sum, in scaled space, one step at a time
        belief = belief @ language.transition * language.emission[:, symbol]
        log_prob += belief.sum().log().item()
        belief /= belief.sum()
    assert math.isclose(language.log_prob(symbols).item(), log_prob, rel_tol=1e-11)


def test_optimal_perplexity_predicts_each_token_but_the_first() -> None:
    language, symbols = tiny_language(3), [1, 2, 2, 0, 3]
    conditional = enumerate_paths(language, symbols) / enumerate_paths(language, symbols[:1])
    assert math.isclose(language.perplexity(torch.tensor(symbols)), conditional ** (-1 / 4))


def test_sample_follows_the_language() -> None:
    language = tiny_language(5)
    symbols = language.sample(40_000, torch.Generator().manual_seed(0))
    pairs = torch.bincount(4 * symbols[:-1] + symbols[1:], minlength=16) / (len(symbols) - 1)
    stationary = torch.linalg.matrix_power(language.transition, 200)[0]
    joint = stationary[:, None] * language.transition
    expected = language.emission.T @ joint @ language.emission
    # The standard error of a frequency is at most 0.0025 for independent pairs; sticky states
    # carry about 5 tokens each.
    assert (pairs.reshape(4, 4) - expected).abs().max() < 0.015


def test_merged_words_have_the_probability_of_their_sum() -> None:
    language, vocabulary = tiny_language(2), Vocabulary(("<unk>", "b", "<eos>"))
    merged = language.over(vocabulary, ["<eos>", "a", "b", "c"])
    read = {0: (1, 3), 1: (2,), 2: (0,)}  # id: the symbols that are spelt so
    text = [0, 1, 0, 2]
    exact = sum(
        enumerate_paths(language, list(symbols))
        for symbols in itertools.product(*(read[token] for token in text))
    )
    assert math.isclose(merged.log_prob(torch.tensor(text)).exp().item(), exact, rel_tol=1e-12)


@pytest.fixture(scope="module")
def hmm() -> Corpus:
    return load_corpus("hmm")


def test_hmm_rewards_memory(hmm: Corpus) -> None:
    size = len(hmm.vocabulary)
    context, target = hmm.test[:-1], hmm.test[1:]
    unigram = (torch.bincount(hmm.train, minlength=size) + 0.5).double()
    unigram /= unigram.sum()
    pairs = torch.bincount(size * hmm.train[:-1] + hmm.train[1:], minlength=size**2)
    pairs = pairs.reshape(size, size) + 500 * unigram  # shrunk, by what is best on the test
    bigram = pairs / pairs.sum(-1, keepdim=True)
    by_frequency = math.exp(-unigram[target].log().mean())
    by_pair = math.exp(-bigram[context, target].log().mean())
    assert hmm.optimal_perplexity is not None
    assert 80 < hmm.optimal_perplexity < 0.75 * by_pair < 0.6 * by_frequency < 150


def test_hmm_is_the_same_everywhere_and_touches_no_global_generator(hmm: Corpus) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = torch.get_rng_state()
        again = load_corpus("hmm")
        assert torch.equal(torch.get_rng_state(), state)
    assert again.sha256 == hmm.sha256
    assert again.optimal_perplexity == hmm.optimal_perplexity
    assert [round(len(hmm.split(split)), -3) for split in Texts._fields] == [60_000, 8_000, 8_000]


def test_hmm_optimum_is_that_of_the_test_split(hmm: Corpus) -> None:
    generator = torch.Generator().manual_seed(0)
    language = HiddenMarkovLanguage.draw(states=12, words=500, generator=generator)
    words = ["<eos>", *(f"w{number:03}" for number in range(500))]
    read = language.over(hmm.vocabulary, words)
    assert read.perplexity(hmm.test) == hmm.optimal_perplexity != read.perplexity(hmm.valid)


def test_hmm_optimum_is_exact_where_rare_words_are_merged(hmm: Corpus) -> None:
    coarse = load_corpus("hmm", min_count=50)
    assert coarse.oov_rate > 0.1 and len(coarse.vocabulary) < len(hmm.vocabulary)
    assert coarse.optimal_perplexity is not None and hmm.optimal_perplexity is not None
    assert 10 < coarse.optimal_perplexity < 0.9 * hmm.optimal_perplexity


# Paths


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
    assert "hmm, ptb, pydoc, wikitext-2" in refusal("ptbb") and "'ptbb'" in refusal("ptbb")
    assert "does not exist" in refusal(tmp_path / "nowhere.txt")
    assert "lacks train.txt, valid.txt, test.txt" in refusal(tmp_path)
    assert "lacks valid.txt, test.txt" in refusal(write(tmp_path, train="a\n"))
    assert "at least 10 lines to be split 80/10/10, got 1" in refusal(tmp_path / "train.txt")


@pytest.mark.parametrize("corpus", ["pydoc", "hmm", Path("text.txt")])
def test_data_dir_of_a_corpus_that_reads_none(corpus: str | Path) -> None:
    message = refusal(corpus, "somewhere")
    assert "published corpora (ptb, wikitext-2), got somewhere" in message
    assert "leave it out" in message


@pytest.mark.parametrize("corpus", ["pydoc", "hmm"])
def test_bad_min_count(corpus: str) -> None:
    assert "min_count must be at least 1, got 0" in refusal(corpus, min_count=0)


def test_registry_is_read_only() -> None:
    assert list(CORPORA) == ["hmm", "ptb", "pydoc", "wikitext-2"]
    with pytest.raises(TypeError):
        CORPORA["mine"] = PTB  # type: ignore[index]


def test_the_names_known_without_torch_are_those_of_the_corpora() -> None:
    published = [name for name, source in CORPORA.items() if isinstance(source, PublishedCorpus)]
    assert (tuple(CORPORA), tuple(published)) == (NAMES, PUBLISHED)
