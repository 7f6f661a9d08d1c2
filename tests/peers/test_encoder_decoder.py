"""An encoder-decoder with attention that decodes step by step.

Bahdanau, Cho and Bengio (2015), https://arxiv.org/abs/1409.0473.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro import Additive, Multiplicative, from_torch

T, B, WORDS, D, H = 5, 6, 9, 6, 10


class Translator(PyroModule):
    """Reads a sentence in both directions, and writes it backwards, a word at a time."""

    def __init__(self, noisy: bool, sites: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(WORDS, D), nn.Linear(3 * H, WORDS)
        self.score = nn.Linear(H, 2 * H)
        encoder: Any = nn.GRU(D, H, bidirectional=True)
        decoder: Any = nn.GRU(D, H)
        if noisy:
            normal = dist.Normal(0.0, 1.0)
            encoder = from_torch(encoder, noise=Additive(normal), spread=0.1, sites=sites)
            decoder = from_torch(decoder, noise=Multiplicative(normal), spread=0.1, sites=sites)
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.embedding(source))  # (T, B, 2·H)
        state = state.mean(0, keepdim=True)
        written = torch.cat([torch.zeros_like(target[:1]), target[:-1]])
        logits = []
        for word in written.split(1):
            hidden, state = self.decoder(self.embedding(word), state)  # (1, B, H)
            weights = (memory * self.score(hidden)).sum(-1, keepdim=True).softmax(0)
            context = (weights * memory).sum(0, keepdim=True)
            logits.append(self.head(torch.cat([hidden, context], -1)))
        return torch.cat(logits)

    def model(self, source: Tensor, target: Tensor) -> None:
        words: Any = dist.Categorical(logits=self(source, target))
        with pyro.plate("steps", T, dim=-2), pyro.plate("sentences", B, dim=-1):
            pyro.sample("words", words, obs=target)


def pairs() -> tuple[Tensor, Tensor]:
    source = torch.randint(1, WORDS, (T, B))
    return source, source.flip(0)


def test_without_its_noise_it_is_the_same_network() -> None:
    plain, noisy = Translator(False).eval(), Translator(True).eval()
    source, target = pairs()
    torch.testing.assert_close(noisy(source, target), plain(source, target))


def test_it_trains_in_a_plain_loop() -> None:
    translator, (source, target) = Translator(True), pairs()
    optimizer = torch.optim.Adam(translator.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        logits = translator(source, target).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, target.flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_each_step_of_the_decoder_has_sites_of_its_own() -> None:
    translator = Translator(True, sites="sequence")
    trace = poutine.trace(translator.model).get_trace(*pairs())
    decoder = {f"decoder.noise_0{end}" for end in ("", "__1", "__2", "__3", "__4")}
    assert decoder | {"encoder.noise_0", "encoder.noise_0_reverse"} <= set(trace.nodes)
    assert torch.as_tensor(trace.log_prob_sum()).isfinite()


@pytest.mark.parametrize("noisy", [False, True])
def test_it_trains_under_svi(noisy: bool) -> None:
    translator, (source, target) = Translator(noisy), pairs()
    optimizer = pyro.optim.Adam({"lr": 0.02})
    svi = SVI(translator.model, lambda *args: None, optimizer, Trace_ELBO())
    losses = [svi.step(source, target) for _ in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
