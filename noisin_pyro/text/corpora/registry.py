"""Loads a corpus by its name or path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from noisin_pyro.text.corpora.archives import ENWIK8, TEXT8, WIKITEXT103, PublishedArchive
from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.corpora.datasets import PREFIX, load_dataset
from noisin_pyro.text.corpora.hmm import hmm
from noisin_pyro.text.corpora.published import PTB, WIKITEXT2, PublishedCorpus
from noisin_pyro.text.corpora.pydoc import pydoc
from noisin_pyro.text.sources import check_data_dir, read_splits
from noisin_pyro.tokens import TOKENS, Tokens

__all__ = ["CORPORA", "load_corpus"]

CORPORA: Mapping[str, PublishedCorpus | PublishedArchive | Callable[..., Corpus]] = (
    MappingProxyType(
        {
            **{"enwik8": ENWIK8, "hmm": hmm, "ptb": PTB, "pydoc": pydoc, "text8": TEXT8},
            **{"wikitext-103": WIKITEXT103, "wikitext-2": WIKITEXT2},
        }
    )
)
"""All corpora that have a name: published ones, and functions that make one.

The functions take ``min_count`` and ``tokens``.
"""


def load_corpus(
    corpus: str | Path,
    data_dir: str | Path | None = None,
    min_count: int | None = None,
    tokens: Tokens | None = None,
) -> Corpus:
    """Loads a corpus by its name, or a text of one's own by its path.

    Args:
        corpus: a name in ``CORPORA``; or the path of a folder with ``train.txt``, ``valid.txt`` and
            ``test.txt``; or of one text file, whose lines are cut 80/10/10 in their order; or
            ``hf:NAME``, a data set of the Hugging Face Hub (``noisin_pyro.text.corpora.datasets``).
            A ``Path`` is never taken for a name, nor is ``"./ptb"``.
        data_dir: the folder with the files of a published corpus, or one in which that lies under
            the corpus's name; they are downloaded by default.
        min_count: words that occur fewer times in the training text become ``<unk>``; by default
            what the corpus asks for, which is 2 for pydoc and 1 for all others.
        tokens: ``"words"``, ``"characters"`` or ``"bytes"``; by default what the corpus asks for:
            characters for text8, bytes for enwik8, words for all others.

    Returns:
        The corpus. Words stand between whitespace, every line ends in ``<eos>``, and the
        vocabulary is that of the training split.

    Raises:
        ValueError: if there is no such corpus, or its files are missing, empty, not UTF-8, not
            the published ones, or cannot be downloaded, or an argument does not fit. One
            sentence says which, and what to do.
        ImportError: if a download is needed and pooch is not installed.

    Example:
        >>> corpus = load_corpus("hmm")
        >>> corpus.vocabulary
        Vocabulary(502 words)
        >>> round(corpus.optimal_perplexity)
        104
    """
    if tokens is not None and tokens not in TOKENS:
        raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}")
    source = CORPORA.get(corpus) if isinstance(corpus, str) else None
    check_data_dir(corpus, data_dir)
    load: Callable[..., Corpus]
    if isinstance(source, (PublishedCorpus, PublishedArchive)):
        load = partial(source.load, data_dir)
    elif isinstance(corpus, str) and corpus.startswith(PREFIX):
        load = partial(load_dataset, corpus)
    else:
        load = source or partial(_load_path, Path(corpus))
    return load(tokens=tokens, **({} if min_count is None else {"min_count": min_count}))


def _load_path(path: Path, min_count: int = 1, tokens: Tokens | None = None) -> Corpus:
    texts = Texts(*read_splits(path))
    return Corpus.from_texts(path.resolve().name, texts, min_count, tokens or "words")
