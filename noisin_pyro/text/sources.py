"""Where a text comes from, checked before torch is imported to load it."""

from __future__ import annotations

from pathlib import Path

from noisin_pyro.plain_text import read_text
from noisin_pyro.text.files import cut_lines, find_splits

__all__ = ["NAMES", "PUBLISHED", "check_data_dir", "check_source", "read_splits"]

#: The corpora that have a name.
NAMES = ("enwik8", "hmm", "ptb", "pydoc", "text8", "wikitext-103", "wikitext-2")
#: Those of them whose files are downloaded, or lie in a folder that is given.
PUBLISHED = ("enwik8", "ptb", "text8", "wikitext-103", "wikitext-2")
PREFIX = "hf:"  # of the names of data sets on the Hugging Face Hub


def check_source(corpus: str, data_dir: str | None = None) -> None:
    """Refuses a text that :func:`~noisin_pyro.text.corpora.load_corpus` could not load.

    Files are read, which takes a hundredth of the time that torch takes to be imported; nothing is
    downloaded.

    Raises:
        ValueError: as ``load_corpus`` does.
    """
    check_data_dir(corpus, data_dir)
    if corpus not in NAMES and not corpus.startswith(PREFIX):
        read_splits(Path(corpus))


def check_data_dir(corpus: str | Path, data_dir: str | Path | None) -> None:
    """Refuses a folder of published files for a text that is none.

    Raises:
        ValueError: if there is one.
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
