"""Whether a tighter bound keeps a learned γ from falling, on a small text that is overfitted.

    python benchmarks/tight_bounds.py
    python benchmarks/tight_bounds.py --json results/tight-bounds/pydoc.json

The setting of notebook 07, in several seeds: an LSTM with multiplicative noise learns the first
6,000 characters of `pydoc` by windows of 40, and is validated on 6,000 others. γ is learned under
the NOISIN objective, the importance-weighted bound and the filtering bound; beside them are γ = 1,
fixed, and no noise. Perplexities are per character, on the mean path.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from noisin_pyro import (
    FilteringELBO,
    LanguageModel,
    Learned,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    PriorGuide,
    Vocabulary,
    detach_state,
    evaluate,
    load_corpus,
    streams,
    windows,
)
from noisin_pyro.training.record import environment

PARTICLES, FLOOR = 4, 0.05
SIZE, WINDOW, LEARNING_RATE = 96, 40, 0.01


class Method(NamedTuple):
    """How the spread is set and what is maximised."""

    title: str
    spread: Callable[[], Any]
    elbo: Callable[[], Any]
    noisy: bool = True


def learned() -> Learned:
    return Learned(1.0, lower=FLOOR)


METHODS = {
    "none": Method("no noise", lambda: 1.0, NoisinELBO, noisy=False),
    "fixed": Method("NOISIN, γ = 1 fixed", lambda: 1.0, NoisinELBO),
    "noisin": Method("NOISIN, γ learned", learned, NoisinELBO),
    "importance": Method(
        f"importance-weighted, {PARTICLES} particles, γ learned",
        learned,
        lambda: FilteringELBO(PARTICLES, ess_threshold=0.0),
    ),
    "filter": Method(
        f"filtering, {PARTICLES} particles, γ learned", learned, lambda: FilteringELBO(PARTICLES)
    ),
}


def texts(characters: int) -> tuple[Vocabulary, Tensor, Tensor, str]:
    """The vocabulary, characters to train on, as many others, and the corpus's digest."""
    corpus = load_corpus("pydoc")
    words = corpus.vocabulary.decode(corpus.train[:30_000])
    every = list("_".join(words).replace("<eos>", "|"))
    vocabulary = Vocabulary.build(every)
    text = vocabulary.encode(every)
    return vocabulary, text[:characters], text[60_000 : 60_000 + characters], corpus.sha256


def train(
    method: Method, vocabulary: Vocabulary, train: Tensor, valid: Tensor, epochs: int, seed: int
) -> dict[str, Any]:
    """By epoch, the validation perplexity and γ."""
    pyro.set_rng_seed(seed)
    noise = Multiplicative(dist.Normal(0.0, 1.0)) if method.noisy else None
    rnn = NoisyLSTM(SIZE, SIZE, noise=noise, spread=method.spread())
    model = LanguageModel(len(vocabulary), rnn)
    objective = method.elbo()(model, PriorGuide(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    perplexities, spreads = [], []
    start = time.perf_counter()
    for _ in range(epochs):
        state = None
        for x, y in windows(streams(train, 10), WINDOW):
            optimizer.zero_grad()
            loss, state = objective.with_state(x, y, state)
            (loss / y.numel()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            state = detach_state(state)
        perplexities.append(evaluate(model, valid).perplexity)
        spreads.append(model.rnn.spread[0].item() if method.noisy else 0.0)
    seconds = time.perf_counter() - start
    return {"seed": seed, "valid": perplexities, "spread": spreads, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--characters", type=int, default=6_000)
    args = parser.parse_args()
    vocabulary, text, valid, digest = texts(args.characters)
    record: dict[str, Any] = {
        "corpus": {"name": "pydoc", "sha256": digest, "characters": args.characters},
        "epochs": args.epochs,
        **environment(),
        "methods": {name: {"title": m.title, "runs": []} for name, m in METHODS.items()},
    }
    for seed in range(1, args.seeds + 1):
        for name, method in METHODS.items():
            run = train(method, vocabulary, text, valid, args.epochs, seed)
            record["methods"][name]["runs"].append(run)
            print(
                f"seed {seed}  {method.title:46} best {min(run['valid']):5.2f}  last "
                f"{run['valid'][-1]:5.2f}  γ {run['spread'][-1]:.2f}",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
