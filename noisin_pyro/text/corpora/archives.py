"""Benchmark texts that are published as one zip file: text8, enwik8, WikiText-103."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.corpora.download import Published, PublishedFile
from noisin_pyro.tokens import Tokens

__all__ = ["ENWIK8", "TEXT8", "WIKITEXT103", "PublishedArchive"]

_PART = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class PublishedArchive(Published):
    """A benchmark in a zip file.

    Attributes:
        file: the zip file.
        members: the names of the files in it: one for each split, or a single one that is cut.
        most_bytes: the largest size of a member, in bytes; a larger one is refused.
        cuts: the two places, in bytes, at which a single member is cut into splits.
        tokens: what a token is by default.
    """

    file: PublishedFile
    members: tuple[str, ...]
    most_bytes: int
    cuts: tuple[int, int] | None = None
    tokens: Tokens = "words"

    @property
    def files(self) -> tuple[PublishedFile]:
        """The zip file."""
        return (self.file,)

    def load(
        self,
        data_dir: str | Path | None = None,
        min_count: int = 1,
        tokens: Tokens | None = None,
    ) -> Corpus:
        """Reads the zip file and checks its SHA-256; nothing is unpacked to the disk.

        Args:
            data_dir: the folder that holds it, or one in which that lies under the corpus's name;
                downloaded into the user's cache by default.
            min_count: words that occur fewer times in the training text become ``<unk>``.
            tokens: what a token is; by default that of this benchmark.

        Raises:
            ValueError: if the file is missing, is not the published one, or cannot be downloaded.
            ImportError: if a download is needed and pooch is not installed.
        """
        folder = self.folder(data_dir)
        names = (self.file.name, *self.file.aliases)
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise ValueError(
                f"{folder} lacks {self.file.name}; give the folder that holds it, as it was "
                "published"
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for part in iter(lambda: file.read(_PART), b""):
                digest.update(part)
        if digest.hexdigest() != self.file.sha256:
            raise ValueError(
                f"{path} has SHA-256 {digest.hexdigest()}, but the published file has "
                f"{self.file.sha256}; fetch it again, or to use this text as it is, unpack it and "
                "give its folder as the corpus"
            )
        texts = Texts(*self._texts(path))
        return Corpus.from_texts(self.name, texts, min_count, tokens or self.tokens)

    def _texts(self, path: Path) -> Iterator[str]:
        with zipfile.ZipFile(path) as archive:
            for member in self.members:
                if archive.getinfo(member).file_size > self.most_bytes:
                    raise ValueError(f"{member} of {path} has more than {self.most_bytes:,} bytes")
                data = archive.read(member)
                ends = (0, *(self.cuts or ()), len(data))
                for start, end in zip(ends, ends[1:]):  # a cut may lie within a character
                    yield data[start:end].decode("utf-8", "surrogateescape")


TEXT8 = PublishedArchive(
    name="text8",
    base_url="http://mattmahoney.net/dc",
    file=PublishedFile(
        "text8.zip", "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"
    ),
    members=("text8",),
    most_bytes=100_000_000,
    cuts=(90_000_000, 95_000_000),
    tokens="characters",
)
"""text8 (Mahoney, 2006): 10⁸ letters and spaces of Wikipedia, cut 90/5/5 as is usual.

http://mattmahoney.net/dc/textdata.html. The SHA-256 is the one that independent loaders publish.
"""

ENWIK8 = PublishedArchive(
    name="enwik8",
    base_url="http://mattmahoney.net/dc",
    file=PublishedFile(
        "enwik8.zip", "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
    ),
    members=("enwik8",),
    most_bytes=100_000_000,
    cuts=(90_000_000, 95_000_000),
    tokens="bytes",
)
"""enwik8 (Mahoney, 2006): the first 10⁸ bytes of Wikipedia with their markup, cut 90/5/5.

http://mattmahoney.net/dc/textdata.html. The SHA-256 is the one that independent loaders publish.
"""

WIKITEXT103 = PublishedArchive(
    name="wikitext-103",
    base_url="https://wikitext.smerity.com",
    file=PublishedFile(
        "wikitext-103-v1.zip",
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        most_bytes=250_000_000,
    ),
    members=tuple(f"wikitext-103/wiki.{split}.tokens" for split in Texts._fields),
    most_bytes=600_000_000,
)
"""WikiText-103 (Merity et al., 2017): 103 million words, 267,735 of them different.

The SHA-256 is the one that independent loaders publish.
"""
