"""The text of a run: its corpus, or the beginning of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noisin_pyro.text.corpora import CORPORA, Corpus, Vocabulary, load_corpus
from noisin_pyro.training.config import TrainConfig

__all__ = ["load_text", "text_of_run"]


def load_text(config: TrainConfig) -> Corpus:
    """The corpus of a configuration, with its training split cut to ``train_tokens``.

    Its vocabulary stays that of the whole split, so that validation and test texts read the same.

    Raises:
        ValueError: if there is no such corpus, or its training split has fewer tokens.
    """
    corpus = load_corpus(config.corpus, config.data_dir)
    if not config.train_tokens:
        return corpus
    if config.train_tokens > (there := len(corpus.train)):
        raise ValueError(
            f"train_tokens must be at most the {there:,} tokens of {config.corpus}'s training "
            f"split, got {config.train_tokens:,}; 0 takes all"
        )
    return replace(corpus, train=corpus.train[: config.train_tokens])


def text_of_run(
    config: TrainConfig,
    vocabulary: Vocabulary,
    corpus: str | None = None,
    data_dir: str | None = None,
) -> Corpus:
    """The text of a run, or another one with its vocabulary, to evaluate the run on.

    Args:
        config: the run's.
        vocabulary: the run's.
        corpus: a name or a path; the run's own if omitted.
        data_dir: the folder with a published corpus's files; the run's own if both are omitted.

    Raises:
        ValueError: if it cannot be loaded, or has another vocabulary.
    """
    name = config.corpus if corpus is None else corpus
    place = config.data_dir if corpus is None and data_dir is None else data_dir
    if corpus is None and name not in CORPORA and not Path(name).exists():
        raise ValueError(
            f"the run's text was {name!r}, which is not there; give --corpus the path where it is "
            "now"
        )
    text = load_text(replace(config, corpus=name, data_dir=place))
    if text.vocabulary != vocabulary:
        raise ValueError(
            f"the corpus {name!r} has another vocabulary than the run's vocabulary.txt (pydoc "
            "differs between Python versions); give --corpus the text that it was trained on, or "
            "one whose training split has the same words in the same order"
        )
    return text
