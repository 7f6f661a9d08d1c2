"""Weight decay, dropout, zoneout, weight drop and a shorter text, as options of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

from noisin_pyro.cli import main
from noisin_pyro.text.corpora import load_corpus
from noisin_pyro.training.build import build_model, build_optimizer
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.run import train
from noisin_pyro.training.text import load_text

TINY: dict[str, Any] = {"embedding_size": 4, "hidden_size": 4, "epochs": 1, "quiet": True,
                        "train_tokens": 900}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "asgd"])
def test_weight_decay_leaves_the_spread_alone(optimizer: Any) -> None:
    """One step without a gradient: what decays shrinks by the factor that torch's formula has."""
    rate, decay = 0.1, 0.3
    config = TrainConfig(
        optimizer=optimizer, weight_decay=decay, learning_rate=rate, learn_spread=True
    )
    model = build_model(config, 7)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made = build_optimizer(config, model, 10)
    held = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))  # γ too, which is to be learned
    made.step()
    for name, value in model.named_parameters():
        spread = "spread" in name
        torch.testing.assert_close(value, before[name] * (1 if spread else 1 - rate * decay))
    assert any("spread" in name for name in before)


def test_without_decay_the_optimizer_is_as_it_was() -> None:
    optimizer = build_optimizer(TrainConfig(learn_spread=True), build_model(TrainConfig(), 7), 10)
    assert type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1


def test_dropout_is_on_every_connection_that_is_not_recurrent() -> None:
    model = build_model(TrainConfig(noise="none", dropout=0.3, layers=2), 7)
    assert (model.dropout_input, model.rnn.dropout, model.dropout_output) == (0.3, 0.3, 0.3)
    assert not model.rnn.tied and not model.dropout_words
    assert build_model(TrainConfig(noise="none", dropout=0.3), 7).rnn.dropout == 0


def test_zoneout_and_weight_drop_are_the_models() -> None:
    config = TrainConfig(noise="none", zoneout=[0.05, 0.5], weight_drop=0.4, layers=2)
    rnn = build_model(config, 7).rnn
    assert rnn.zoneout == (0.05, 0.5)
    assert all(parametrize.is_parametrized(rnn, f"weight_hh_l{layer}") for layer in range(2))
    assert build_model(TrainConfig(cell="mingru", zoneout=[0.1]), 7).rnn.zoneout == (0.1,)


def test_the_first_tokens_of_a_text() -> None:
    whole = load_corpus("hmm")
    corpus = load_text(TrainConfig(corpus="hmm", train_tokens=900))
    assert torch.equal(corpus.train, whole.train[:900])
    assert torch.equal(corpus.test, whole.test) and corpus.vocabulary == whole.vocabulary
    assert load_text(TrainConfig(corpus="hmm")).train.equal(whole.train)
    with pytest.raises(ValueError, match="train_tokens must be at most the .* tokens of hmm's tr"):
        load_text(TrainConfig(corpus="hmm", train_tokens=10**9))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_a_run_with_all_of_them(
    cell: Any, noise: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, resumes, and what it wrote is evaluated and continued."""
    every: dict[str, Any] = {"zoneout": 0.1, "weight_drop": 0.3, "dropout": 0.2,
                             "weight_decay": 0.1}  # fmt: skip
    folder, text = tmp_path / "run", tmp_path / "words.txt"
    text.write_text("".join(f"a b c {'defg'[n % 4]} h\n" for n in range(400)))
    every |= {"cell": cell, "noise": noise, "corpus": str(text), "out": str(folder)}
    config = TrainConfig(**TINY, **every)
    record = train(config)
    assert record["corpus"]["train"] == 900
    label = "deterministic" if noise == "none" else "noisin"
    perplexity = record["models"][label]["final"]["mean_path"]["test"]
    again = TrainConfig(**{**TINY, "epochs": 2}, **every, resume=True)
    longer = train(again)["models"][label]["final"]["mean_path"]["test"]
    assert longer <= perplexity * 1.5
    assert main(["evaluate", str(folder)]) == 0
    assert f"perplexity {longer:.2f}" in capsys.readouterr().out
    assert main(["generate", str(folder), "--words", "3"]) == 0
