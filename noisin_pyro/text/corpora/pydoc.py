"""The Python language reference, which every CPython carries for ``help()``."""

from __future__ import annotations

import re

from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.tokens import Tokens

__all__ = ["pydoc"]

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_RULER = re.compile(r"([^\w\s])\1{3,}")  # underlined headings, borders of tables
_TOKEN = re.compile(r"[^\W_]+|\S")


def pydoc(min_count: int = 2, tokens: Tokens | None = None) -> Corpus:
    """Reads ``pydoc_data.topics``, one paragraph per line: a real text that needs no download.

    About 90,000 tokens and 2,300 words (84,000 and 2,250 in CPython 3.11, 91,000 and 2,350 in
    3.13); ``Corpus.sha256`` tells which edition it was. A token is a run of letters and digits or
    one other mark, so ``__init__`` is five; case is kept, as in Python. Drawn lines are removed.

    A fifth of the paragraphs stand under more than one topic. Repetitions are removed before the
    text is split, or test paragraphs would be in the training split too. Of every ten paragraphs
    eight are for training, one is for validation and one for the test.

    Args:
        min_count: words that occur fewer times in the training text become ``<unk>``. The text
            has no ``<unk>`` of its own: at 1, a model would meet its first one in the test.
        tokens: what a token is; a word by default. Characters are those of the words and of single
            spaces between them.

    Raises:
        ValueError: if this Python comes without the reference, or ``min_count`` is below 1.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "this Python lacks pydoc_data.topics, from which corpus 'pydoc' is made; "
            "use a full CPython, or another corpus"
        ) from error

    tokenised = (
        " ".join(_TOKEN.findall(paragraph))
        for topic in topics.values()
        for paragraph in _PARAGRAPH_BREAK.split(_RULER.sub("", topic))
    )
    paragraphs = [line for line in dict.fromkeys(tokenised) if line]
    valid, test = paragraphs[8::10], paragraphs[9::10]
    train = [line for place, line in enumerate(paragraphs) if place % 10 < 8]
    texts = Texts(*("".join(f"{line}\n" for line in split) for split in (train, valid, test)))
    return Corpus.from_texts("pydoc", texts, min_count, tokens or "words")
