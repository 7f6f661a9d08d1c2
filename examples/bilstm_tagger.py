"""Noise in a BiLSTM tagger by one changed line. It tags each character of a line of Python code.

``python examples/bilstm_tagger.py`` takes a minute or so. The lines are from the standard library,
one character per step; the tags are the token types of Python's own tokenizer. It learns from 200
lines.
"""

import contextlib
import io
import random
import sys
import textwrap
import tokenize

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from noisin_pyro import Multiplicative, from_torch

TAGS = {
    tokenize.NAME: 1,
    tokenize.OP: 2,
    tokenize.NUMBER: 3,
    tokenize.STRING: 4,
    tokenize.COMMENT: 5,
}


def sentences(module):
    """(characters, tags) of the lines of a module's source."""
    with open(module.__file__, encoding="utf-8") as file:
        source = file.read()
    tags = [[0] * len(line) for line in source.split("\n")]  # 0 is space between tokens
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, start), (last, end) = token.start, token.end
        for at in range(row, last + 1):
            line = tags[at - 1] if at <= len(tags) else []
            stop = end if at == last else len(line)
            begin = start if at == row else 0
            line[begin:stop] = [TAGS.get(token.type, 0)] * (stop - begin)
    for line, tag in zip(source.split("\n"), tags):
        if line.isascii() and 10 < len(line) < 80:
            yield torch.tensor([ord(letter) for letter in line]), torch.tensor(tag[: len(line)])


class Tagger(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.embedding, self.head = nn.Embedding(128, 32), nn.Linear(2 * 64, 6)
        self.lstm = nn.LSTM(32, 64, bidirectional=True)
        if noise is not None:
            self.lstm = from_torch(self.lstm, noise=noise, spread=0.5)  # the changed line

    def forward(self, lines):
        output, _ = self.lstm(pack_sequence([self.embedding(line) for line in lines], False))
        return self.head(torch.cat(unpack_sequence(output)))


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 25
data = [
    pair for module in (contextlib, textwrap, random, tokenize, io) for pair in sentences(module)
]
random.Random(1).shuffle(data)
train, valid, test = data[:200], data[200:500], data[500:]


def accuracy(tagger, pairs):
    lines, tags = zip(*pairs)
    with torch.no_grad():
        return (tagger.eval()(lines).argmax(-1) == torch.cat(tags)).float().mean().item()


for name, noise in (("plain", None), ("noisy", Multiplicative(dist.Normal(0.0, 1.0)))):
    torch.manual_seed(1)
    tagger, scores = Tagger(noise), []
    optimizer = torch.optim.Adam(tagger.parameters(), lr=0.005)
    for _ in range(epochs):
        tagger.train()
        for at in range(0, len(train), 10):
            lines, tags = zip(*train[at : at + 10])
            optimizer.zero_grad()
            F.cross_entropy(tagger(lines), torch.cat(tags)).backward()
            optimizer.step()
        scores.append((accuracy(tagger, valid), accuracy(tagger, test)))
    best, test_score = max(scores)
    print(f"{name}: test accuracy {test_score:.1%}, validation {best:.1%}, best of {epochs} epochs")
