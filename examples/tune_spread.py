"""Tuning γ by validation perplexity, as one tunes a dropout rate.

``python examples/tune_spread.py`` takes three minutes or so. Every γ gets the same seed and epochs
and is judged at its best epoch on the validation text. The test text is read once, for the best γ
and for the network without noise.
"""

import copy
import sys

import pyro.distributions as dist
import torch
import torch.nn.functional as F

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisyLSTM,
    detach_state,
    evaluate,
    load_corpus,
    streams,
    windows,
)

SPREADS = (None, 0.25, 0.5, 1.0, 2.0)  # None is the network without noise
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
corpus = load_corpus("pydoc")
train, valid, test = corpus.train[:30_000], corpus.valid[:10_000], corpus.test


def fit(spread):
    """The model at its best epoch, and its validation perplexity there."""
    torch.manual_seed(1)
    noise = None if spread is None else Multiplicative(dist.Normal(0.0, 1.0))
    model = LanguageModel(
        len(corpus.vocabulary), NoisyLSTM(96, 96, noise=noise, spread=spread or 1.0)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.008)
    best = float("inf")
    for _ in range(epochs):
        state = None
        for x, y in windows(streams(train, 20), 35):
            words, state = model.predict(x, detach_state(state))
            optimizer.zero_grad()
            F.cross_entropy(words.logits.flatten(0, 1), y.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        perplexity = evaluate(model, valid).perplexity
        if perplexity < best:
            best, at_best = perplexity, copy.deepcopy(model)
    return best, at_best


results = {}
for spread in SPREADS:
    results[spread] = fit(spread)
    print(f"spread {spread}: validation perplexity {results[spread][0]:.1f}", flush=True)
chosen = min(results, key=lambda spread: results[spread][0])
for spread in {None, chosen}:
    print(f"spread {spread}: test perplexity {evaluate(results[spread][1], test).perplexity:.1f}")
