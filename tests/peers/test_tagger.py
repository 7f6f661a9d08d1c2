"""A BiLSTM tagger on packed sequences (Huang, Xu and Yu 2015, https://arxiv.org/abs/1508.01991)."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from noisin_pyro import Multiplicative, from_torch

T, B, WORDS, TAGS, D, H = 7, 6, 20, 4, 5, 8
LENGTHS = torch.tensor([7, 5, 5, 3, 2, 1])


class Tagger(nn.Module):
    def __init__(self, noisy: bool, sites: Any = "sequence") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(WORDS, D), nn.Linear(2 * H, TAGS)
        self.lstm: Any = nn.LSTM(D, H, 2, bidirectional=True)
        if noisy:
            noise = Multiplicative(dist.Bernoulli(0.8))
            self.lstm = from_torch(self.lstm, noise=noise, spread=0.5, sites=sites)

    def forward(self, words: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), LENGTHS)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], total_length=T)
        return self.head(hidden)


def sentences() -> tuple[Tensor, Tensor, Tensor]:
    """Words, tags that follow from a word and its neighbour, and where there are words."""
    words = torch.randint(WORDS, (T, B))
    tags = (words + words.roll(-1, 0)) % TAGS
    return words, tags, torch.arange(T).unsqueeze(1) < LENGTHS


def test_without_its_noise_it_is_the_same_network() -> None:
    words, _, _ = sentences()
    plain, noisy = Tagger(False).eval(), Tagger(True).eval()
    assert torch.equal(plain(words), noisy(words))
    noisy.train()
    assert not torch.equal(noisy(words), noisy(words))


def test_it_trains_in_a_plain_loop() -> None:
    words, tags, inside = sentences()
    tagger = Tagger(True)
    optimizer = torch.optim.Adam(tagger.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(tagger(words)[inside], tags[inside])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    tagger.eval()
    assert (tagger(words).argmax(-1) == tags)[inside].double().mean() > 0.8


@pytest.mark.parametrize("sites", [None, "sequence"])
def test_it_trains_under_svi(sites: Any) -> None:
    """As a regulariser without sites, and with the noise as latent variables of their own guide."""
    words, tags, inside = sentences()
    tagger: Any = Tagger(True, sites)
    to_pyro_module_(tagger)

    def model(words: Tensor, tags: Tensor) -> None:
        logits = tagger(words)
        tag: Any = dist.Categorical(logits=logits[inside])
        with pyro.plate("tagged words", int(inside.sum())):
            pyro.sample("tags", tag, obs=tags[inside])

    def guide(words: Tensor, tags: Tensor) -> None:
        if sites is not None:
            with tagger._pyro_context:
                tagger.lstm.draw_noise(T, B, LENGTHS)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(words, tags) for _ in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert isinstance(tagger, PyroModule)
