"""A noisy LSTM in a LightningModule: the Trainer's train() and eval() turn the noise on and off.

``python examples/lightning_module.py`` takes a minute or two. It needs ``pip install lightning``.
"""

import logging
import math
import sys

import lightning as L
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisin_pyro import Multiplicative, NoisyLSTM, load_corpus


class NextWord(L.LightningModule):
    def __init__(self, words, noise):
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, 128), nn.Linear(128, words)
        self.lstm = NoisyLSTM(128, 128, batch_first=True, noise=noise, spread=1.0)
        self.perplexities = []

    def loss(self, batch):
        (text,) = batch  # (sentences, words)
        hidden, _ = self.lstm(self.embedding(text[:, :-1]))
        return F.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())

    def training_step(self, batch, _):
        return self.loss(batch)

    def validation_step(self, batch, _):
        self.log("valid", self.loss(batch))

    def on_validation_epoch_end(self):
        self.perplexities.append(math.exp(self.trainer.callback_metrics["valid"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.004)


def loader(text, shuffle):
    pieces = text[: len(text) // 36 * 36].view(-1, 36)
    return DataLoader(TensorDataset(pieces), batch_size=20, shuffle=shuffle)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 12
corpus = load_corpus("pydoc")
train, valid = loader(corpus.train[:30_000], True), loader(corpus.valid, False)
for name, noise in (("plain", None), ("noisy", Multiplicative(dist.Normal(0.0, 1.0)))):
    L.seed_everything(1, verbose=False)
    module = NextWord(len(corpus.vocabulary), noise)
    trainer = L.Trainer(
        max_epochs=epochs,
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, train, valid)
    best, last = min(module.perplexities), module.perplexities[-1]
    print(f"{name}: validation perplexity {best:.1f}, best of {epochs}; {last:.1f} at the end")
