"""The text of a run: its corpus, or the beginning of it."""

from __future__ import annotations

from dataclasses import replace

from noisin_pyro.text.corpora import Corpus, load_corpus
from noisin_pyro.training.config import TrainConfig

__all__ = ["load_text"]


def load_text(config: TrainConfig) -> Corpus:
    """The corpus of a configuration, whose training split is cut to ``train_tokens`` if it says so.

    Its vocabulary stays that of the whole training split, so that validation and test read the same.

    Raises:
        ValueError: if there is no such corpus, or its training split has fewer tokens.
    """
    corpus = load_corpus(config.corpus, config.data_dir)
    if not config.train_tokens:
        return corpus
    if config.train_tokens > (there := len(corpus.train)):
        raise ValueError(
            f"train_tokens must be at most the {there:,} tokens of {config.corpus}'s training split, "
            f"got {config.train_tokens:,}; 0 takes all"
        )
    return replace(corpus, train=corpus.train[: config.train_tokens])
