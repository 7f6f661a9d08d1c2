"""``noisin evaluate``."""

from __future__ import annotations

from typing import Literal

from noisin_pyro.cli.output import say

__all__ = ["evaluate_run"]


# Not `evaluate`: for a function of that name jsonargparse would look at noisin_pyro.evaluate, whose
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
    """Show the perplexity of a run, or of a saved model.

    Args:
        run: the folder of a finished run, or of a model saved by save_pretrained.
        split: the split to predict.
        samples: number of noisy RNNs whose predictions are averaged; 0 evaluates the mean path,
            without noise.
        antithetic: draw the noise in pairs of opposite sign; samples must then be even.
        readout: what the softmax reads, the noisy state or its mean.
        weighting: equal weights for the noisy RNNs, or those of a particle filter (filter).
        corpus: the name or path of the text, which must have the run's vocabulary; by default the
            corpus of the run.
        data_dir: the folder with the files of a published corpus; by default that of the run.
        trust_code: import and call any class that the run's noise names by class_path.

    Raises:
        ValueError: if there is no such run, its text is missing or has another vocabulary, or an
            option does not fit.
    """
    import torch

    from noisin_pyro.text.evaluation import evaluate
    from noisin_pyro.training.folder import load_run
    from noisin_pyro.training.memory import check_average
    from noisin_pyro.training.text import load_text_of_run

    config, vocabulary, model = load_run(run, trust_code)
    text = load_text_of_run(run, config, vocabulary, corpus, data_dir)
    if samples:
        check_average(model, samples, filtered=weighting == "filter")
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
        nats_or_bits = f"{fit.nats:.4f} nats/token"
    else:
        nats_or_bits = f"{fit.bits:.4f} bits/{vocabulary.tokens.removesuffix('s')}"
    say(f"{split}, {how}: {nats_or_bits}, perplexity {fit.perplexity:.2f}, {fit.tokens:,} tokens")
