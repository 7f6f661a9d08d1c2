"""What an LSTM learns in its first epoch under autocast in bfloat16, torch's and ours.

    python benchmarks/half_precision.py --json results/half-precision/ptb.json
    python benchmarks/half_precision.py --data DIR      # the folder with Penn Treebank's files

A two-layer LSTM language model on the first 200,000 tokens of Penn Treebank, as in ``noisin
reproduce regularisers``, from the same weights in every variant of a seed.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    PriorGuide,
    detach_state,
    load_corpus,
    streams,
    to_torch,
    windows,
)
from noisin_pyro.training.environment import environment

VARIANTS = {
    "torch's `nn.LSTM`, single": ("torch", False),
    "torch's `nn.LSTM`, bf16": ("torch", True),
    "ours, no noise, bf16": ("none", True),
    "ours, γ = 1, single": ("noise", False),
    "ours, γ = 1, bf16": ("noise", True),
}
PARTS = 5  # of the epoch


class Plain(nn.Module):
    """The deterministic language model in torch's own layers."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.lstm = model, to_torch(model.rnn)

    def with_state(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        z, state = self.lstm(self.model.embedding(x), state)
        head = self.model.emission
        logits = F.linear(z, head.weight, head.bias).flatten(0, 1).float()
        return F.cross_entropy(logits, y.flatten(), reduction="sum"), state


def first_epoch(network: str, halves: bool, tokens: Tensor, words: int, seed: int) -> list[float]:
    """The training perplexity of each part of the first epoch."""
    pyro.set_rng_seed(seed)
    noise = Multiplicative(dist.Normal(0.0, 1.0)) if network == "noise" else None
    rnn = NoisyLSTM(128, 128, 2, noise=noise, **({"spread": 1.0} if noise else {}))
    model = LanguageModel(words, rnn)
    objective: Any = NoisinELBO()(model, PriorGuide(model))
    if network == "torch":
        objective = Plain(model)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.004)
    state, losses = None, []
    for x, y in windows(streams(tokens, 20), 35):
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            total, state = objective.with_state(x, y, state)
        loss = total / y.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        state = detach_state(state)
        losses.append(loss.item())
    parts = torch.tensor(losses).tensor_split(PARTS)
    return [math.exp(float(part.mean())) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--data", help="the folder with the corpus; downloaded if omitted")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    corpus = load_corpus("ptb", args.data)
    tokens, words = corpus.train[: args.tokens], len(corpus.vocabulary)
    runs: dict[str, list[list[float]]] = {}
    for seed in range(1, args.seeds + 1):
        for name, (network, halves) in VARIANTS.items():
            runs.setdefault(name, []).append(first_epoch(network, halves, tokens, words, seed))
            print(f"seed {seed}, {name}:", *(f"{part:.0f}" for part in runs[name][-1]), flush=True)
    if args.json:
        record = {"schema": 1, **environment(), "tokens": len(tokens), "perplexity": runs}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
