"""``noisin corpus``."""

from __future__ import annotations

from typing import Literal

from noisin_pyro.cli.output import say

__all__ = ["corpus"]


def corpus(
    name: str,
    data_dir: str | None = None,
    min_count: int | None = None,
    tokens: Literal["auto", "words", "characters", "bytes"] = "auto",
) -> None:
    """Show a corpus's statistics, as in the paper's Table 1.

    Args:
        name: a name (pydoc, hmm, ptb, wikitext-2, wikitext-103, text8, enwik8), the path of a text
            file or folder, or hf:NAME for a data set of the Hugging Face Hub.
        data_dir: the folder with the files of ptb, wikitext-2, wikitext-103, text8 or enwik8, or
            one in which that lies under the corpus's name; they are downloaded if omitted.
        min_count: words that occur fewer times in the training text become <unk>; by default 2 for
            pydoc and 1 for any other corpus.
        tokens: what a token is; auto is characters for text8, bytes for enwik8, and words for any
            other corpus.
    """
    from noisin_pyro.text.sources import check_source

    check_source(name, data_dir)
    from noisin_pyro.text.corpora import load_corpus

    loaded = load_corpus(name, data_dir, min_count, None if tokens == "auto" else tokens)
    statistics = loaded.statistics()
    rows = [
        ("corpus", loaded.name),
        ("tokens", loaded.vocabulary.tokens),
        *((f"tokens, {split}", f"{statistics[split]:,}") for split in ("train", "valid", "test")),
        ("vocabulary", f"{statistics['vocabulary']:,}"),
        ("OoV rate", f"{100 * statistics['oov_rate']:.1f} %"),
    ]
    if loaded.optimal_perplexity:
        rows.append(("best possible test perplexity", f"{loaded.optimal_perplexity:.2f}"))
    rows.append(("SHA-256", loaded.sha256))
    for title, value in rows:
        say(f"{title:<32}{value:>14}")
