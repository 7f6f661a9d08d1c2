"""What ``noisin train`` and ``noisin reproduce`` train, written a second time in plain torch.

Truncated windows with the state carried, cut off, and begun anew in each epoch; the loss per token;
clipping by the global norm; schedules; ASGD's averages; early stopping; the best epoch's figures.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisin_pyro.experiments.job import run as run_job
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import seeded
from noisin_pyro.training.run import train
from noisin_pyro.training.text import load_text

#: Adam knows no scale of the loss, so only SGD tells a sum from a mean.
TRAININGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 12.0, "clip_norm": 0.25,
            "schedule": "divide-when-worse:1.5", "epochs": 8, "patience": 0},
    "asgd": {"optimizer": "asgd", "learning_rate": 12.0, "clip_norm": 0.5, "epochs": 4,
             "patience": 0},
    "asgd-halved": {"optimizer": "asgd", "learning_rate": 12.0, "clip_norm": 0.5,
                    "schedule": "halve-after:2", "epochs": 4, "patience": 0},
    "halved": {"optimizer": "sgd", "learning_rate": 1.5, "clip_norm": 0.0,
               "schedule": "halve-after:2", "epochs": 4, "patience": 0},
    "stopped": {"learning_rate": 0.05, "schedule": "divide-when-worse:1.5", "epochs": 30,
                "patience": 5},
}  # fmt: skip


class Plain(nn.Module):
    """Embedding, torch's LSTM, softmax."""

    def __init__(self, words: int, config: TrainConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, words)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.lstm(self.embedding(x), state)
        return self.head(h), state


def nats(model: Plain, tokens: Tensor) -> float:
    """The mean loss over ten streams, each read in one go; each begins where the last one ended."""
    length = (len(tokens) - 1) // 10
    pieces = [tokens[k * length : (k + 1) * length + 1] for k in range(10)]
    stream = torch.stack(pieces, 1)
    with torch.no_grad():
        logits, _ = model(stream[:-1])
    return F.cross_entropy(logits.flatten(0, 1), stream[1:].flatten()).item()


def by_hand(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Training losses, validation losses and learning rates by epoch, and the final figures."""
    words = len(corpus.vocabulary)
    with seeded(config.seed):
        start = list(build_model(config, words).state_dict().values())
    model = Plain(words, config)
    parameters = list(model.parameters())
    with torch.no_grad():  # embedding; w_ih, w_hh, b_ih, b_hh; the softmax's weight and bias
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    adam = torch.optim.Adam(parameters, lr=config.learning_rate)
    length = len(corpus.train) // config.batch_size
    stream = torch.stack(
        [corpus.train[k * length : (k + 1) * length] for k in range(config.batch_size)], 1
    )
    rate, done, since = config.learning_rate, 0, 0
    best: tuple[float, int, dict[str, float]] = (math.inf, 0, {})
    average = [p.detach().clone() for p in parameters]
    clipped, losses, valid, rates = [], [], [], []
    steps = math.ceil((length - 1) / config.unroll)
    for epoch in range(1, config.epochs + 1):
        state, total = None, 0.0
        for first in range(0, length - 1, config.unroll):
            x, y = (stream[a : min(a + config.unroll, length - 1 + a - first)]
                    for a in (first, first + 1))  # fmt: skip
            logits, state = model(x, state)
            state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            gradients = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            clipped.append(bool(config.clip_norm) and norm > config.clip_norm)
            scale = config.clip_norm / norm if clipped[-1] else 1.0
            total += loss.item() * y.numel()
            done += 1
            with torch.no_grad():
                if config.optimizer == "adam":
                    for parameter, gradient in zip(parameters, gradients):
                        parameter.grad = gradient * scale
                    adam.param_groups[0]["lr"] = rate
                    adam.step()
                else:
                    for parameter, gradient in zip(parameters, gradients):
                        parameter.sub_(gradient, alpha=rate * scale)
                # torch's ASGD averages from one step after the second epoch's first one on
                share = 1.0 / max(1, done - steps - 1)
                for mean, parameter in zip(average, parameters):
                    mean += share * (parameter - mean)
        losses.append(total / ((length - 1) * config.batch_size))
        rates.append(rate)
        last = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, average):
                if config.optimizer == "asgd":
                    parameter.copy_(value)
        valid.append(nats(model, corpus.valid))
        since += 1
        if valid[-1] < best[0]:
            seen = corpus.train[: len(corpus.test)]
            splits = {"train": seen, "valid": corpus.valid, "test": corpus.test}
            figures = {name: math.exp(nats(model, part)) for name, part in splits.items()}
            best, since = (valid[-1], epoch, figures), 0
        with torch.no_grad():
            for parameter, value in zip(parameters, last):
                parameter.copy_(value)
        if config.schedule.startswith("halve") and epoch >= 2:
            rate /= 2
        if config.schedule.startswith("divide") and epoch > 1 and valid[-1] > valid[-2]:
            rate /= 1.5
        if since == config.patience > 0:
            break
    return {"train": losses, "valid": valid, "rates": rates, "best": best[1], "final": best[2],
            "clipped": clipped}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words of ten tell the next one; the tail of a stream and of a window are left over."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for split, lines in (("train", 31), ("valid", 14), ("test", 17)):
        words = [draw.randrange(10), draw.randrange(10)]
        while len(words) < 7 * lines:
            words.append((words[-1] + words[-2] + draw.choice([0, 0, 1])) % 10)
        rows = [" ".join(f"w{w}" for w in words[7 * k : 7 * k + 7]) for k in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("driver", ["train", "reproduce"])
def test_a_training_is_what_it_is_by_hand(
    text: Path, tmp_path: Path, name: str, driver: str
) -> None:
    config = TrainConfig(
        corpus=str(text), embedding_size=6, hidden_size=8, noise="none", batch_size=3, unroll=8,
        out=str(tmp_path / "run"), device="cpu", quiet=True, **TRAININGS[name],
    )  # fmt: skip
    if driver == "train":
        record = train(config)["models"]["deterministic"]
    else:
        target, folder = tmp_path / "record.json", tmp_path / "work"
        folder.mkdir()
        job = {"config": config.to_dict(), "record": str(target), "samples": (2,), "about": {}}
        run_job(job, folder, lambda status: None)
        record = json.loads(target.read_text())
    wanted = by_hand(config, load_text(config))
    history = record["history"]
    assert [row["learning_rate"] for row in history] == pytest.approx(wanted["rates"], rel=1e-12)
    for split in ("train", "valid"):
        ours = [row[f"{split}_nats"] for row in history]
        assert ours == pytest.approx(wanted[split], rel=1e-4), split
    assert record["best_epoch"] == wanted["best"]
    final = record["final"]["mean_path"]
    assert {split: final[split] for split in final if split != "samples"} == pytest.approx(
        {split: wanted["final"][split] for split in final if split != "samples"}, rel=1e-4
    )
    # None of it is empty: the splits differ, the best epoch is not the last one, clipping is
    # partial, and an epoch is worse than the one before.
    assert len({round(value, 3) for value in final.values()}) == len(final)
    assert (wanted["best"] < len(history)) == ("halved" not in name)
    assert any(wanted["clipped"]) == ("sgd" in name) and not all(wanted["clipped"])
    assert (
        len(set(wanted["rates"]))
        == {"sgd": 2, "asgd": 1, "asgd-halved": 3, "halved": 3, "stopped": 4}[name]
    )
    if name == "stopped":  # worse is worse than the epoch before, not than the best one
        valid = wanted["valid"]
        assert len(history) < 30 and any(
            min(valid[:epoch]) < valid[epoch] < valid[epoch - 1]
            for epoch in range(2, len(valid) - 1)
        )
