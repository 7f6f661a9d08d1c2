"""What the tests of corpora share: a tiny text, and how a refusal is read."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.download import PublishedFile
from noisin_pyro.text.corpora.published import PublishedCorpus

TEXTS = Texts(train="a b a c\n\na b\n", valid="b c\n", test="c d\n")

#: The folder with the published files of each corpus, which no test downloads.
DATA = Path(os.environ.get("NOISIN_DATA", Path(__file__).parents[3] / "shared" / "data"))


def published_folder(name: str) -> Path:
    """The folder of a published corpus; the test is skipped where there is none."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; set NOISIN_DATA to the folder that holds it")
    return DATA / name


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


def sentences(corpus: Corpus, split: str) -> list[str]:
    words = corpus.vocabulary.decode(corpus.split(split))
    return [line.strip() for line in " ".join(words).split("<eos>")[:-1]]


def published(**files: str) -> PublishedCorpus:
    """A published corpus of tiny files, nowhere on the web."""
    texts = TEXTS._replace(**files)
    train, valid, test = (
        PublishedFile(f"tiny.{split}.txt", hashlib.sha256(text.encode()).hexdigest(), (split,))
        for split, text in texts._asdict().items()
    )
    return PublishedCorpus("tiny", "http://127.0.0.1:9", train, valid, test)
