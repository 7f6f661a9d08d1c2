"""Corpora for language models: three splits of token ids and the vocabulary that made them.

Where a new corpus goes: a text that is downloaded is one more entry in ``published.py``; a text
that is made on the spot is a new file like ``pydoc.py`` or ``hmm.py``, holding one function that
returns a `Corpus`. Either is then named in ``registry.py``.

    vocabulary.py   words to ids and back
    corpus.py       three texts to a Corpus
    published.py    ptb, wikitext-2: verified files, downloaded where none are given
    pydoc.py        the Python language reference, which every CPython carries
    hmm.py          a synthetic language whose optimal perplexity is known
    registry.py     names to corpora

What text files may hold, and which names there are, stands in ``text/files.py`` and
``text/sources.py``, which import no torch.
"""

from noisin_pyro.text.corpora.corpus import Corpus
from noisin_pyro.text.corpora.registry import CORPORA, load_corpus
from noisin_pyro.text.corpora.vocabulary import Vocabulary

__all__ = ["CORPORA", "Corpus", "Vocabulary", "load_corpus"]
