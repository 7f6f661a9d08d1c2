"""Corpora for language models: three splits of token ids and the vocabulary that made them.

Where a new corpus goes: a text that is downloaded is one more entry in ``published.py`` or
``archives.py``; a text that is made on the spot is a new file like ``pydoc.py`` or ``hmm.py``,
holding one function that returns a ``Corpus``. Either is then named in ``registry.py``.

    corpus.py       three texts to a Corpus
    tokenise.py     a whole text to words, characters or bytes
    download.py     one file from the web: verified, limited, complete or absent
    published.py    ptb, wikitext-2: one file a split, downloaded where none are given
    archives.py     text8, enwik8, wikitext-103: one zip file
    datasets.py     hf:NAME, by the package datasets
    pydoc.py        the Python language reference, which every CPython carries
    hmm.py          a synthetic language whose optimal perplexity is known
    registry.py     names to corpora

The names of the corpora, and the splitting of text files, are in ``text/sources.py`` and
``text/files.py``, which import no torch.
"""

from noisin_pyro.text.corpora.corpus import Corpus
from noisin_pyro.text.corpora.registry import CORPORA, load_corpus
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["CORPORA", "Corpus", "Vocabulary", "load_corpus"]
