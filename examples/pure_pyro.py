"""The paper's program in plain Pyro: a noisy tanh RNN, one sample site per time step, and SVI.

``python examples/pure_pyro.py`` takes a minute or two. Noise, model and guide are written out here;
``LanguageModel`` with ``NoisyRNN(..., sites="timestep")`` and ``PriorGuide`` is the same program.
"""

import math
import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from noisin_pyro import load_corpus, streams

corpus, hidden, gamma = load_corpus("pydoc"), 64, 0.3
words = len(corpus.vocabulary)
torch.manual_seed(1)
net = nn.ModuleList(
    [nn.Embedding(words, hidden), nn.RNNCell(hidden, hidden), nn.Linear(hidden, words)]
)


def states(x):
    embedding, cell, _ = net
    z = torch.zeros(x.shape[1], hidden)
    for t, word in enumerate(x):
        h = cell(embedding(word), z)  # h_t = f(x_t, z_{t-1})
        z = pyro.sample(f"z_{t}", dist.Normal(h, gamma).to_event(1))  # E[z_t | z_{t-1}] = h_t
        yield z


def model(x, y):
    pyro.module("net", net)
    with pyro.plate("batch", x.shape[1]):
        for t, z in enumerate(states(x)):
            pyro.sample(f"y_{t}", dist.Categorical(logits=net[2](z)), obs=y[t])


def guide(x, y):  # the prior, so that the KL is zero and the ELBO is the NOISIN objective
    pyro.module("net", net)
    with pyro.plate("batch", x.shape[1]):
        list(states(x))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.004}), Trace_ELBO())
batches = [streams(text, 32) for text in (corpus.train[:40_000], corpus.valid[:10_000])]
for epoch in range(int(sys.argv[1]) if len(sys.argv) > 1 else 6):
    nats = [
        [step(text[t : t + 20], text[t + 1 : t + 21]) / 640 for t in range(0, len(text) - 21, 20)]
        for text, step in zip(batches, (svi.step, svi.evaluate_loss))
    ]
    train, valid = (math.exp(sum(part) / len(part)) for part in nats)
    print(f"epoch {epoch + 1}: perplexity with noise {train:.0f}, on held-out text {valid:.0f}")
