"""Antithetic particles in training: gradient variance, and validation perplexity at equal cost.

    python benchmarks/antithetic.py --out results/antithetic                 # every run, 3 seeds
    python benchmarks/antithetic.py --out results/antithetic --cell lstm --particles pair --seed 1

One noisy RNN per window for 16 epochs of ``pydoc``, against the mean over two of them, independent
or an antithetic pair, for 8 epochs: 16 passes over the text each. The runs of one particle also
measure, at the weights of some epochs and on the same window, how much the three gradients vary
from draw to draw. A run whose record is there is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    detach_state,
    evaluate,
    load_corpus,
    streams,
    windows,
)
from noisin_pyro.training.environment import environment

CELLS = {"lstm": (NoisyLSTM, 1.0), "tanh": (NoisyRNN, 0.5)}  # with the γ of each
PARTICLES: dict[str, dict[str, Any]] = {
    "one": {"num_particles": 1},
    "independent": {"num_particles": 2, "vectorize_particles": True},
    "pair": {"num_particles": 2, "vectorize_particles": True, "antithetic": True},
}


def build(cell: str, vocabulary: int, hidden: int) -> LanguageModel:
    kind, spread = CELLS[cell]
    rnn = kind(hidden, hidden, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=spread)
    return LanguageModel(vocabulary, rnn)


def gradient_noise(model: LanguageModel, stream: Tensor, draws: int) -> dict[str, float]:
    """tr Cov(g) / |E g|² of each estimator's gradient g on one window, after a warm-up window."""
    first, (x, y) = itertools.islice(windows(stream, 35), 2)
    _, state = NoisinELBO()(model, PriorGuide(model)).with_state(*first)
    state, noise = detach_state(state), {}
    leaves = list(model.parameters())
    for name, options in PARTICLES.items():
        objective = NoisinELBO(**options)(model, PriorGuide(model))
        total, squares = [torch.zeros_like(leaf) for leaf in leaves], 0.0
        for _ in range(draws):
            gradient = torch.autograd.grad(objective(x, y, state), leaves)
            for summed, part in zip(total, gradient):
                summed += part
            squares += sum(float(part.square().sum()) for part in gradient)
        mean = sum(float((summed / draws).square().sum()) for summed in total)
        variance = (squares / draws - mean) * draws / (draws - 1)
        noise[name] = variance / (mean - variance / draws)  # unbiased numerator and denominator
    return noise


def train(
    cell: str, particles: str, seed: int, passes: int, measured: Sequence[int], quick: bool
) -> dict[str, Any]:
    """One run, as a record."""
    corpus = load_corpus("pydoc")
    train_tokens, valid = (part[:2000] if quick else part for part in (corpus.train, corpus.valid))
    pyro.set_rng_seed(seed)
    model = build(cell, len(corpus.vocabulary), 8 if quick else 128)
    stream, options = streams(train_tokens, 20), PARTICLES[particles]
    objective = NoisinELBO(**options)(model, PriorGuide(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    history, noise, seconds = [], [], 0.0
    for epoch in range(1, passes // options["num_particles"] + 1):
        model.train()
        start, state, nats, tokens = time.perf_counter(), None, 0.0, 0
        for x, y in windows(stream, 35):
            loss, state = objective.with_state(x, y, state)
            optimizer.zero_grad()
            (loss / y.numel()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            state, nats, tokens = detach_state(state), nats + loss.item(), tokens + y.numel()
        seconds += time.perf_counter() - start
        perplexity = evaluate(model, valid).perplexity
        history.append(
            {"epoch": epoch, "train_nats": nats / tokens, "valid_perplexity": perplexity}
        )
        if particles == "one" and epoch in measured:
            model.train()
            noise.append({"epoch": epoch, **gradient_noise(model, stream, 4 if quick else 40)})
    return {
        "schema": 1,
        **environment(),
        "corpus": {"name": "pydoc", "sha256": corpus.sha256},
        "cell": cell,
        "hidden": model.rnn.hidden_size,
        "noise": "multiplicative gaussian",
        "spread": CELLS[cell][1],
        "particles": particles,
        "seed": seed,
        "passes": passes,
        "seconds": seconds,
        "history": history,
        "gradient_noise": noise,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the records")
    parser.add_argument("--cell", choices=CELLS, nargs="+", default=list(CELLS))
    parser.add_argument("--particles", choices=PARTICLES, nargs="+", default=list(PARTICLES))
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--passes", type=int, default=16, help="over the text, of every run")
    parser.add_argument("--quick", action="store_true", help="a little text and a tiny network")
    given = parser.parse_args()
    passes, measured = (4, (1, 4)) if given.quick else (given.passes, (1, 4, 8, 16))
    for cell, seed, particles in itertools.product(given.cell, given.seed, given.particles):
        path = given.out / f"{cell}.{particles}.seed{seed}.json"
        if path.exists():
            continue
        with pyro.validation_enabled(False):
            record = train(cell, particles, seed, passes, measured, given.quick)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        best = min(row["valid_perplexity"] for row in record["history"])
        print(f"{path.name}: {best:.2f} in {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
