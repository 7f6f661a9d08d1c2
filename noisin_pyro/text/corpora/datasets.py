"""``hf:NAME``: any text of the Hugging Face Hub, or of a folder, through the package datasets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.files import cut_lines
from noisin_pyro.text.sources import PREFIX
from noisin_pyro.tokens import Tokens

__all__ = ["PREFIX", "load_dataset"]


def load_dataset(source: str, min_count: int = 1, tokens: Tokens | None = None) -> Corpus:
    """Loads a data set with a column of text; none of its code is run.

    Args:
        source: ``hf:NAME``, or ``hf:NAME:CONFIGURATION`` if it has several, such as
            ``hf:Salesforce/wikitext:wikitext-2-v1``. NAME is what ``datasets.load_dataset`` takes:
            a repository of the Hub, or the path of a folder with ``train.txt`` and so on.
        min_count: words that occur fewer times in the training text become ``<unk>``.
        tokens: what a token is; a word by default.

    Returns:
        The splits train, validation (or valid) and test, each row a line. A data set with the
        split train alone is cut 80/10/10.

    Raises:
        ValueError: if it cannot be loaded, or has no such splits or no column of text.
        ImportError: if datasets is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'{source} needs datasets; run pip install "noisin-pyro[hf]"') from error

    name = source.removeprefix(PREFIX)
    configuration = None
    if not Path(name).exists() and ":" in name:
        name, configuration = name.rsplit(":", 1)
    try:
        splits = datasets.load_dataset(name, configuration)
    except Exception as error:  # of datasets, of pyarrow, or of the network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{source} cannot be loaded ({reason}); check the name and the configuration, as in "
            "hf:Salesforce/wikitext:wikitext-2-v1"
        ) from None
    if set(splits) == {"train"}:
        texts = Texts(*cut_lines(_text(splits["train"], source)))
    else:
        wanted = [("train",), ("validation", "valid"), ("test",)]
        found = [next((n for n in names if n in splits), None) for names in wanted]
        if None in found:
            raise ValueError(
                f"{source} must have the splits train, validation and test, or train alone, got "
                f"{', '.join(splits)}; make a folder with train.txt, valid.txt, test.txt of it"
            )
        texts = Texts(*(_text(splits[n], source) for n in found))
    return Corpus.from_texts(name, texts, min_count, tokens or "words")


def _text(rows: Any, source: str) -> str:
    columns = [name for name, kind in rows.features.items() if _is_text(kind)]
    column = "text" if "text" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        raise ValueError(
            f"{source} must have a column 'text', or one column of text, got "
            f"{', '.join(rows.features)}"
        )
    return "".join(_lines(rows[column]))


def _lines(rows: Iterable[str | None]) -> Iterable[str]:
    for row in rows:
        text = row or ""
        yield text if text.endswith("\n") else f"{text}\n"


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")
