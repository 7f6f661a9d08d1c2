"""Downloads files, verifies their SHA-256 and limits their size; a file is complete or absent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["MOST_BYTES", "Published", "PublishedFile", "fetch"]

MOST_BYTES = 50_000_000  # the default limit of a file's size


@dataclass(frozen=True)
class PublishedFile:
    """A file whose bytes are known.

    Attributes:
        name: the file's name on the web and in the cache.
        sha256: the SHA-256 of its bytes. A file with another one is never used.
        aliases: other names that copies of the file have.
        most_bytes: the largest size that is written to the disk, also if a server compresses it.
    """

    name: str
    sha256: str
    aliases: tuple[str, ...] = ()
    most_bytes: int = MOST_BYTES


@dataclass(frozen=True)
class Published:
    """A benchmark that can be downloaded.

    Attributes:
        name: the corpus's name.
        base_url: the URL of the folder of its files; for a mirror use
            ``dataclasses.replace(PTB, base_url=...)``.
    """

    name: str
    base_url: str

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """All of its files."""
        raise NotImplementedError

    def folder(self, data_dir: str | Path | None) -> Path:
        """The folder of the files, which are downloaded if none is given.

        Args:
            data_dir: the folder, or one in which it lies under the corpus's name.

        Raises:
            ValueError: as :meth:`download` does.
            ImportError: if pooch is needed and not installed.
        """
        if data_dir is None:
            return self.download()
        names = [name for file in self.files for name in (file.name, *file.aliases)]
        given, inner = Path(data_dir), Path(data_dir, self.name)
        # An unpacked archive may lie beside the archive, in a folder with the corpus's name.
        is_outer = inner.is_dir() and not any((given / name).is_file() for name in names)
        return inner if is_outer else given

    def download(self, folder: str | Path | None = None) -> Path:
        """Downloads the files that are not there; each gets its name once its SHA-256 is verified.

        Args:
            folder: the folder to write to, by default ``pooch.os_cache("noisin_pyro") / name``.

        Returns:
            The folder.

        Raises:
            ValueError: if the network fails or sends something else.
            ImportError: if pooch is not installed.
        """
        if folder is None:
            folder = Path(_pooch(self.name).os_cache("noisin_pyro")) / self.name
        for file in self.files:
            fetch(self.name, self.base_url, file, Path(folder))
        return Path(folder)


def fetch(corpus: str, base_url: str, file: PublishedFile, folder: Path) -> None:
    """Downloads a file unless it is there; it gets its name once its SHA-256 is verified.

    Args:
        corpus: the corpus's name, for error messages.
        base_url: the URL of the file's folder.
        file: the file.
        folder: the folder to write to.

    Raises:
        ValueError: if the network fails or sends something else.
        ImportError: if pooch is not installed.
    """
    url = f"{base_url.rstrip('/')}/{file.name}"
    fix = "try again, or fetch it another way and give its folder as data_dir (--data_dir)"

    def download(url: str, path: str, pooch: Any) -> None:
        from pooch import HTTPDownloader

        with open(path, "wb") as target:
            HTTPDownloader()(url, _Limited(target, file.most_bytes), pooch)

    try:
        _pooch(corpus).retrieve(
            url, f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=download
        )
    except OSError as error:  # what requests raises is an OSError, too
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP {status}" if status else type(error).__name__
        raise ValueError(f"{url} cannot be downloaded ({reason}); {fix}") from error
    except _TooLargeError:
        raise ValueError(f"{url} sent more than {file.most_bytes:,} bytes; {fix}") from None
    except ValueError as error:
        raise ValueError(
            f"{url} sent something whose SHA-256 is not {file.sha256}; {fix}"
        ) from error


class _TooLargeError(ValueError):
    """A server sends more bytes than the limit."""


class _Limited:
    """A file to write to that refuses more than ``most`` bytes."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.left = file, most

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise _TooLargeError
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _pooch(corpus: str) -> Any:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f'downloading {corpus} needs pooch: pip install "noisin-pyro[lm]", '
            "or give the folder that holds its files as data_dir"
        ) from error
    return pooch
