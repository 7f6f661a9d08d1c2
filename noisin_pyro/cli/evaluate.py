"""``noisin evaluate``."""

from __future__ import annotations

import os
from typing import Literal

from noisin_pyro.cli.output import say

__all__ = ["evaluate_run"]


# Not `evaluate`: to a function of that name jsonargparse would prefer noisin_pyro.evaluate, whose
# import brings torch.
def evaluate_run(
    run: str,
    split: Literal["train", "valid", "test"] = "test",
    samples: int = 0,
    antithetic: bool = False,
    readout: Literal["noisy", "mean"] = "noisy",
    weighting: Literal["equal", "filter"] = "equal",
    corpus: str | None = None,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> None:
    """Perplexity of a finished run, or of a shared model.

    Args:
        run: the folder that ``noisin train`` or ``save_pretrained`` wrote.
        split: the split to predict.
        samples: 0 for the mean path, or the number of noisy RNNs to average over.
        antithetic: draw the noise in pairs of opposite sign.
        readout: what the softmax reads, the noisy state or its mean.
        weighting: equal, or filter for the weights of a particle filter.
        corpus: the text, with the same vocabulary; the run's own, where it lay, if omitted.
        data_dir: the folder with a published corpus's files; the run's own if omitted.
        trust_code: import and call any class that the run's noise names by class_path.
    """
    import torch

    from noisin_pyro.text.corpora import load_corpus
    from noisin_pyro.text.evaluation import evaluate
    from noisin_pyro.text.sources import NAMES, PREFIX
    from noisin_pyro.training.folder import load_run
    from noisin_pyro.training.memory import check_average
    from noisin_pyro.training.text import load_text

    config, vocabulary, model = load_run(run, trust_code)
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
    if samples:
        check_average(model, samples)
    torch.manual_seed(1 if config is None else config.seed)
    fit = evaluate(
        model,
        text.split(split),
        samples,
        antithetic=antithetic,
        readout=readout,
        weighting=weighting,
    )
    how = f"averaged over {samples} samples" if samples else "mean path"
    if fit.effective_samples is not None:
        how += f", {fit.effective_samples:.1f} of them effective"
    if vocabulary.tokens == "words":
        fitted = f"{fit.nats:.4f} nats/token, perplexity {fit.perplexity:.2f}"
    else:
        fitted = f"{fit.bits:.4f} bits/{vocabulary.tokens[:-1]}, perplexity {fit.perplexity:.2f}"
    say(f"{split}, {how}: {fitted}, {fit.tokens:,} tokens")
