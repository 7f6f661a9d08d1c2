"""A word language model with NoisinELBO and truncated backpropagation, with noise and without.

``python examples/word_language_model.py`` takes two minutes or so and needs no data: it trains on
the language reference that every CPython carries. It prints the test perplexity of the epoch that
is best on the validation text.
"""

import sys

import pyro.distributions as dist
import torch

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    PriorGuide,
    detach_state,
    evaluate,
    load_corpus,
    streams,
    windows,
)

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
corpus = load_corpus("pydoc")
text = streams(corpus.train, 20)  # 20 contiguous streams, read side by side

for name, noise in (("plain", None), ("noisy", Multiplicative(dist.Normal(0.0, 1.0)))):
    torch.manual_seed(1)
    model = LanguageModel(len(corpus.vocabulary), NoisyLSTM(128, 128, noise=noise, spread=1.0))
    objective = NoisinELBO()(model, PriorGuide(model))  # the loss, as a torch module
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    best = (float("inf"), float("inf"), 0)
    for epoch in range(1, epochs + 1):
        state = None
        for x, y in windows(text, 35):
            # the state is carried to the next window, without its gradient
            loss, state = objective.with_state(x, y, detach_state(state))
            optimizer.zero_grad()
            (loss / y.numel()).backward()  # nats per word
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        valid = evaluate(model, corpus.valid).perplexity  # on the mean path, without noise
        if valid < best[0]:
            best = (valid, evaluate(model, corpus.test).perplexity, epoch)
    valid, test, epoch = best
    print(
        f"{name}: test perplexity {test:.1f}, validation {valid:.1f}, in epoch {epoch} of {epochs}"
    )
