"""A layer-normalised LSTM cell of your own, with noise and without, as a word language model.

``python examples/layer_norm_lstm.py`` trains it on the language reference that every CPython
carries. The cell runs in a Python loop, so it takes some minutes.
"""

import sys

import pyro.distributions as dist
import torch
from torch import nn

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyRecurrent,
    PriorGuide,
    detach_state,
    evaluate,
    load_corpus,
    streams,
    windows,
)


class LayerNormLSTMCell(nn.Module):
    """Called as torch.nn.LSTMCell; Ba et al. (2016), https://arxiv.org/abs/1607.06450."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.input_size, self.hidden_size = inputs, hidden
        self.of_x, self.of_h = (nn.Linear(size, 4 * hidden, False) for size in (inputs, hidden))
        self.norm_x, self.norm_h = nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden)
        self.norm_c = nn.LayerNorm(hidden)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.norm_x(self.of_x(x)) + self.norm_h(self.of_h(h))).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
corpus = load_corpus("pydoc")
for name, noise in (("deterministic", None), ("noisy", Multiplicative(dist.Normal(0.0, 1.0)))):
    torch.manual_seed(1)
    rnn = NoisyRecurrent(LayerNormLSTMCell(128, 128), noise=noise, spread=1.0)
    model = LanguageModel(len(corpus.vocabulary), rnn)
    objective = NoisinELBO()(model, PriorGuide(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    perplexities = []
    for _ in range(epochs):
        state = None
        for x, y in windows(streams(corpus.train, 20), 35):
            loss, state = objective.with_state(x, y, detach_state(state))
            optimizer.zero_grad()
            (loss / y.numel()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        texts = (corpus.valid, corpus.test)
        perplexities.append(tuple(evaluate(model, text).perplexity for text in texts))
    valid, test = min(perplexities)  # of the epoch that is best on the validation text
    print(f"{name}: perplexity {valid:.1f} on the validation text, {test:.1f} on the test text")
