"""Every option of ``noisin evaluate``, ``generate`` and ``corpus`` changes what is printed."""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from noisin_pyro import LanguageModel, NoisyRNN, family
from noisin_pyro.cli import main
from noisin_pyro.cli.corpus import corpus
from noisin_pyro.cli.evaluate import evaluate_run
from noisin_pyro.cli.generate import generate
from noisin_pyro.text.corpora import load_corpus

#: By option: its value, and what else must be given for it to act.
EVALUATE: dict[str, tuple[str, dict[str, str]]] = {
    "split": ("valid", {}),
    "samples": ("2", {}),
    "antithetic": ("true", {"samples": "4"}),
    "readout": ("mean", {"samples": "4"}),
    "weighting": ("filter", {"samples": "4"}),
}
GENERATE: dict[str, tuple[str, dict[str, str]]] = {
    "prompt": ("w3 w4", {}),
    "words": ("20", {}),
    "temperature": ("0.01", {}),
    "noise": ("true", {"temperature": "0.01"}),
    "seed": ("2", {}),
}
CORPUS: dict[str, tuple[str, dict[str, str]]] = {
    "min_count": ("40", {}),
    "tokens": ("characters", {}),
}
#: What a command reads, where that is, and whom it trusts.
PLACES = {"run", "name", "corpus", "data_dir", "trust_code"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for split, lines in (("train", 60), ("valid", 25), ("test", 30)):
        rows = (" ".join(f"w{draw.randrange(12)}" for _ in range(8)) for _ in range(lines))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = load_corpus(str(text)).vocabulary
    folder = tmp_path_factory.mktemp("model") / "saved"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shared = LanguageModel(len(vocabulary), NoisyRNN(6, 6, noise=family("gaussian")))
        for weight in shared.parameters():
            nn.init.normal_(weight)
    shared.save_pretrained(folder, vocabulary)
    return folder


def differs(capsys: pytest.CaptureFixture[str], base: list[str], option: Any, name: str) -> None:
    value, others = option
    given = [*base, *(f"--{other}={what}" for other, what in others.items())]
    printed = []
    for arguments in (given, given, [*given, f"--{name}={value}"]):
        capsys.readouterr()
        assert main(arguments) == 0
        # The words that only say what was asked for stand before the colon.
        printed.append(capsys.readouterr().out.rpartition(": ")[2])
    assert printed[0] == printed[1] != printed[2]


@pytest.mark.parametrize("name", EVALUATE)
def test_an_option_of_evaluate(
    text: Path, model: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    differs(capsys, ["evaluate", str(model), f"--corpus={text}"], EVALUATE[name], name)


@pytest.mark.parametrize("name", GENERATE)
def test_an_option_of_generate(model: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    differs(capsys, ["generate", str(model)], GENERATE[name], name)


@pytest.mark.parametrize("name", CORPUS)
def test_an_option_of_corpus(text: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    differs(capsys, ["corpus", str(text)], CORPUS[name], name)


def test_every_option_is_here() -> None:
    for command, options in ((evaluate_run, EVALUATE), (generate, GENERATE), (corpus, CORPUS)):
        assert {*inspect.signature(command).parameters} - PLACES == {*options}
