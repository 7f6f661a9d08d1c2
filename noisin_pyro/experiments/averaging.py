"""Measures averaging over noisy RNNs at test time, by kind of noise draw and of readout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.sites import Readout
from noisin_pyro.text.averaging import evaluate_each, paired_difference
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.fit import seeded

__all__ = ["NUMBERS", "VARIANTS", "Variant", "measure_averaging"]

Variant = tuple[Readout, bool]
"""What the emission reads (z or its mean h), and whether noise is drawn in antithetic pairs."""

#: The variants, with their names in tables.
VARIANTS: dict[Variant, str] = {
    ("noisy", False): "z, independent",
    ("noisy", True): "z, pairs",
    ("mean", False): "h, independent",
    ("mean", True): "h, pairs",
}

#: The numbers of noisy RNNs that are measured.
NUMBERS = (2, 4, 8, 16, 32, 64)


def measure_averaging(
    model: LanguageModel,
    tokens: Tensor,
    seed: int,
    report: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Perplexity by number of noisy RNNs, and the paired difference to the mean path.

    Args:
        model: a trained model.
        tokens: the text.
        seed: seed of the noise, the same for every variant.
        report: called with the number of noisy RNNs before each pass.

    Returns:
        For each variant and number: ``readout``, ``antithetic``, ``samples``, the perplexity
        ``test``, and ``gain``, by how many nats per token it is better than the mean path, with
        its standard error ``error``.
    """
    path = evaluate(model, tokens).log_probs
    assert path is not None
    entries = []
    for readout, antithetic in VARIANTS:
        report(max(NUMBERS))
        with seeded(seed):
            fits = evaluate_each(model, tokens, NUMBERS, antithetic=antithetic, readout=readout)
        for count, fit in fits.items():
            assert fit.log_probs is not None
            gain = paired_difference(fit.log_probs, path, block=min(32, max(1, len(path) // 2)))
            entries.append(
                {
                    "readout": readout,
                    "antithetic": antithetic,
                    "samples": count,
                    "test": fit.perplexity,
                    "gain": gain.mean,
                    "error": gain.error,
                }
            )
    return entries
