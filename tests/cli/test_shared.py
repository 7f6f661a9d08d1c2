"""A shared model on the command line: what save_pretrained wrote, and run folders old and new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, LanguageModel, NoisyGRU, Vocabulary, load_corpus
from noisin_pyro.cli import main
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.folder import load_run
from tests.cli.calls import refusal

TINY = ["--embedding_size=4", "--hidden_size=5", "--epochs=1", "--batch_size=4", "--quiet=true"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat sat\na dog ran\n" * 100)
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", f"--corpus={text}", f"--out={out}", "--learn_spread=true", *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def characters(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "characters"
    arguments = [f"--corpus={text}", f"--out={out}", "--tokens=characters", *TINY]
    assert main(["train", *arguments]) == 0
    return out


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_a_run_folder_is_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both models of a run are read by Python and by the command line."""
    for folder in (run, run / "deterministic"):
        model = LanguageModel.from_pretrained(folder)
        assert model.vocabulary is not None and "cat" in model.vocabulary
        assert (model.rnn.noise[0] is None) == (folder != run)
        said = printed(capsys, "generate", str(folder), "--prompt=the cat", "--words=5")
        assert said.startswith("the cat")
    noisy = printed(capsys, "generate", str(run), "--words=30", "--noise=true")
    assert noisy != printed(capsys, "generate", str(run), "--words=30")


def test_a_run_folder_of_before_stays_readable(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no config.json, and its model is that of config.yaml."""
    shutil.copytree(run, tmp_path / "old")
    (tmp_path / "old" / "config.json").unlink()
    config, vocabulary, model = load_run(tmp_path / "old")
    _, _, now = load_run(run)
    assert config is not None and vocabulary == now.vocabulary == model.vocabulary
    ours, theirs = now.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for command in (["evaluate", "--samples=2"], ["generate", "--words=9"]):
        command_of = [command[0], "PLACE", *command[1:]]
        outputs = [
            printed(capsys, *(str(place) if word == "PLACE" else word for word in command_of))
            for place in (run, tmp_path / "old")
        ]
        assert outputs[0] == outputs[1]


def test_a_run_on_text8_without_a_description_reads_characters(tmp_path: Path) -> None:
    """As after a training whose noise only ``config.yaml`` can describe."""
    config = TrainConfig(corpus="text8", embedding_size=4, hidden_size=4, noise="none")
    vocabulary = Vocabulary.build(dict.fromkeys(["a", "b", "<0x20>"], 1), tokens="characters")
    build_model(config, len(vocabulary)).save_pretrained(tmp_path, vocabulary)
    (tmp_path / "config.json").unlink()
    config.save(tmp_path / "config.yaml")
    assert load_run(tmp_path)[1] == vocabulary


def test_a_model_that_was_never_a_run(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = load_corpus(text)
    rnn = NoisyGRU(4, 5, noise=Additive(dist.StudentT(5.0, 0.0, 1.0)), spread=0.2)
    LanguageModel(len(corpus.vocabulary), rnn).save_pretrained(tmp_path, corpus.vocabulary)
    shared = str(tmp_path)
    assert printed(capsys, "generate", shared, "--prompt=a dog", "--words=3").startswith("a dog")
    assert "does not say what it was trained on; name the text with --corpus" in refusal(
        capsys, "evaluate", shared
    )
    said = printed(capsys, "evaluate", shared, f"--corpus={text}", "--samples=2")
    assert "averaged over 2 samples" in said
    assert "need about" in refusal(
        capsys, "evaluate", shared, f"--corpus={text}", "--samples=100000000"
    )
    assert "its vocabulary differs" in refusal(capsys, "evaluate", shared, "--corpus=hmm")
    (tmp_path / "vocabulary.txt").unlink()
    assert "its vocabulary.txt is missing" in refusal(capsys, "generate", shared)


def test_a_strangers_description_is_refused_in_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    values = json.loads(path.read_text())
    values["rnn"]["noise"][0]["base"] = {"class_path": "os.system", "init_args": {}}
    path.write_text(json.dumps(values))
    assert "class_path must lie in torch.distributions" in refusal(
        capsys, "generate", str(tmp_path / "copy")
    )


def test_a_model_of_characters(characters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "evaluate", str(characters), "--samples=2")
    bits, perplexity = (float(word) for word in (said.split()[5], said.split()[8].rstrip(",")))
    assert "bits/character" in said and abs(2**bits - perplexity) < 0.01
    drawn = printed(capsys, "generate", str(characters), "--prompt=the cat", "--words=20")
    assert drawn.startswith("the cat") and len(drawn.rstrip("\n")) <= 27
    record = json.loads((characters / "record.json").read_text())
    assert record["corpus"]["tokens"] == "characters"
    for model in record["models"].values():
        final = model["final"]["mean_path"]
        assert abs(2 ** final["bits"]["test"] - final["test"]) < 1e-6
    model = LanguageModel.from_pretrained(characters)
    assert model.vocabulary is not None and model.vocabulary.tokens == "characters"
    yaml = (characters / "config.yaml").read_text()
    assert "tokens: characters" in yaml
    resumed = ["train", f"--config={characters}/config.yaml", "--resume=true"]
    assert "bits per character" in printed(capsys, *resumed)


def test_the_tokens_of_a_corpus(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "corpus", str(text), "--tokens=bytes")
    assert "bytes" in said and "vocabulary" in said
    assert "the known ones are auto, words, characters, bytes" in refusal(
        capsys, "corpus", str(text), "--tokens=letters"
    )
