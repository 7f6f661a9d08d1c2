"""Checks a corpus's name, or reads the files at its path, without importing torch."""

from __future__ import annotations

from pathlib import Path

from noisin_pyro.plain_text import read_text
from noisin_pyro.text.files import cut_lines, find_splits

__all__ = ["NAMES", "PREFIX", "PUBLISHED", "check_data_dir", "check_source", "read_splits"]

#: The corpora that have a name.
NAMES = ("enwik8", "hmm", "ptb", "pydoc", "text8", "wikitext-103", "wikitext-2")
#: Those of them whose files are downloaded, or read from ``data_dir``.
PUBLISHED = ("enwik8", "ptb", "text8", "wikitext-103", "wikitext-2")
PREFIX = "hf:"  # begins the name of a data set on the Hugging Face Hub


def check_source(corpus: str, data_dir: str | None = None) -> None:
    """Refuses a corpus that :func:`~noisin_pyro.text.corpora.load_corpus` could not load.

    Files at a path are read, which takes a hundredth of the time of importing torch. Nothing is
    downloaded.

    Raises:
        ValueError: if there is no such corpus, or a file is missing, empty, not UTF-8 or too short.
    """
    check_data_dir(corpus, data_dir)
    if corpus not in NAMES and not corpus.startswith(PREFIX):
        read_splits(Path(corpus))


def check_data_dir(corpus: str | Path, data_dir: str | Path | None) -> None:
    """Refuses ``data_dir`` with a corpus that is not a published one.

    Raises:
        ValueError: if both are given.
    """
    if data_dir is not None and corpus not in PUBLISHED:
        raise ValueError(
            f"data_dir is for published corpora ({', '.join(PUBLISHED)}), got {data_dir} "
            f"with corpus {str(corpus)!r}; leave it out"
        )


def read_splits(path: Path) -> tuple[str, str, str]:
    """The training, validation and test text of a folder with one file each, or of one file.

    Raises:
        ValueError: if there is no such file, or it is empty, not UTF-8 or too short.
    """
    if path.is_dir():
        train, valid, test = find_splits(path, [("train.txt",), ("valid.txt",), ("test.txt",)])
        return read_text(train), read_text(valid), read_text(test)
    if not path.exists():
        raise ValueError(
            f"corpus must be one of {', '.join(NAMES)} or the path of a text file or folder, "
            f"got {str(path)!r}, which does not exist"
        )
    return cut_lines(read_text(path))
