"""The text that a run trains on, and that a finished run is evaluated on."""

from __future__ import annotations

import os
from dataclasses import replace

from noisin_pyro.text.corpora import Corpus, Vocabulary, load_corpus
from noisin_pyro.text.sources import NAMES, PREFIX
from noisin_pyro.training.config import TrainConfig

__all__ = ["load_text", "load_text_of_run"]


def load_text(config: TrainConfig, data_dir: str | None = None) -> Corpus:
    """The corpus of a configuration, with its training split cut to ``train_tokens``.

    The vocabulary stays that of the whole split, so that validation and test tokens do not change.

    Args:
        config: the run.
        data_dir: the folder with a published corpus's files; by default that of the run.

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


def load_text_of_run(
    run: str,
    config: TrainConfig | None,
    vocabulary: Vocabulary,
    corpus: str | None,
    data_dir: str | None,
) -> Corpus:
    """The corpus to evaluate a finished run on.

    Args:
        run: the run's folder, for the sentences of errors.
        config: its configuration; None for a model that was saved without one.
        vocabulary: its vocabulary, which the corpus must have.
        corpus: a corpus in place of the run's.
        data_dir: the folder with a published corpus's files; by default that of the run.

    Raises:
        ValueError: if no corpus is known, it is missing, or its vocabulary differs.
    """
    if corpus is not None:
        text = load_corpus(corpus, data_dir, tokens=vocabulary.tokens)
    elif config is None:
        raise ValueError(
            f"{run!r} does not say what it was trained on; name the text with --corpus"
        )
    else:
        corpus = config.corpus
        if not (corpus in NAMES or corpus.startswith(PREFIX) or os.path.exists(corpus)):
            raise ValueError(
                f"the run's text was {corpus!r}, which is not there; give --corpus the path where "
                "it is now"
            )
        text = load_text(config, data_dir)
    if text.vocabulary != vocabulary:
        raise ValueError(
            f"the corpus {corpus!r} here is not the one {run!r} was trained on, its "
            "vocabulary differs (pydoc differs between Python versions); train again, or evaluate "
            "where it was trained"
        )
    return text
