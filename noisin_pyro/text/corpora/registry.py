"""Names to corpora."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.corpora.hmm import hmm
from noisin_pyro.text.corpora.published import PTB, WIKITEXT2, PublishedCorpus
from noisin_pyro.text.corpora.pydoc import pydoc
from noisin_pyro.text.sources import check_data_dir, read_splits

CORPORA: Mapping[str, PublishedCorpus | Callable[..., Corpus]] = MappingProxyType(
    {"hmm": hmm, "ptb": PTB, "pydoc": pydoc, "wikitext-2": WIKITEXT2}
)
"""All corpora that have a name: published ones, and functions that make one (``min_count=...``)."""


def load_corpus(
    corpus: str | Path, data_dir: str | Path | None = None, min_count: int | None = None
) -> Corpus:
    """Loads a corpus by its name, or a text of one's own by its path.

    Args:
        corpus: A name in `CORPORA`; or the path of a folder with ``train.txt``, ``valid.txt`` and
            ``test.txt``; or of one text file, whose lines are cut 80/10/10 in their order. A
            `Path` is never taken for a name, nor is ``"./ptb"``.
        data_dir: The folder with the files of a published corpus, downloaded by default.
        min_count: Words that occur fewer times in the training text become ``<unk>``; by default
            what the corpus asks for, which is 2 for pydoc and 1 for all others.

    Returns:
        The corpus. Tokens stand between whitespace, every line ends in ``<eos>``, and the
        vocabulary is that of the training split.

    Raises:
        ValueError: If there is no such corpus, or its files are missing, empty, not UTF-8, not
            the published ones, or cannot be downloaded, or an argument does not fit. One
            sentence says which, and what to do.
        ImportError: If a download is needed and pooch is not installed.

    Example:
        >>> corpus = load_corpus("hmm")
        >>> corpus.vocabulary
        Vocabulary(502 words)
        >>> round(corpus.optimal_perplexity)
        104
    """
    source = CORPORA.get(corpus) if isinstance(corpus, str) else None
    check_data_dir(corpus, data_dir)
    load: Callable[..., Corpus]
    if isinstance(source, PublishedCorpus):
        load = partial(source.load, data_dir)
    else:
        load = source or partial(_load_path, Path(corpus))
    return load() if min_count is None else load(min_count=min_count)


def _load_path(path: Path, min_count: int = 1) -> Corpus:
    return Corpus.from_texts(path.resolve().name, Texts(*read_splits(path)), min_count)
