"""The text of a run: its corpus, or the beginning of it."""

from __future__ import annotations

from dataclasses import replace

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.training.config import TrainConfig

__all__ = ["load_text"]


def load_text(config: TrainConfig, data_dir: str | None = None) -> Corpus:
    """The corpus of a configuration, with its training split cut to ``train_tokens``.

    Its vocabulary stays that of the whole split, so that validation and test texts read the same.

    Args:
        config: the run.
        data_dir: the folder with a published corpus's files, if it is not that of the run.

    Raises:
        ValueError: if there is no such corpus, or its training split has fewer tokens.
    """
    corpus = load_corpus(config.corpus, data_dir or config.data_dir, tokens=config.read_as)
    if not config.train_tokens:
        return corpus
    if config.train_tokens > (there := len(corpus.train)):
        raise ValueError(
            f"train_tokens must be at most the {there:,} tokens of {config.corpus}'s training "
            f"split, got {config.train_tokens:,}; 0 takes all"
        )
    return replace(corpus, train=corpus.train[: config.train_tokens])
