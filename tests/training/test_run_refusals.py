"""What does not fit is refused in one sentence, before a file is written."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.run import train
from noisin_pyro.training.schedule import Schedule
from tests.training.runs import small


@pytest.mark.parametrize(
    "text",
    ["halve", "halve-after:x", "divide-when-worse:1", "divide-when-worse:inf", "constant:3"],
)
def test_unknown_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"schedule must be constant, .* got '{text}'"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cell": "rnn_cosine"}, "unknown cell 'rnn_cosine'; the known ones are rnn_tanh"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; the known ones are adam, sgd, asgd"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"dropout_input": 1.0}, r"dropout_input must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"tied_weights": True, "hidden_size": 9}, "tied_weights needs embedding_size equal"),
        ({"devices": 3}, "batch_size must be a multiple of 3 devices, got 20"),
    ],
)
def test_bad_configurations_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"noise": "brown"}, "unknown noise 'brown'; the known ones are none, gaussian, laplace"),
        ({"noise": "pyro.distributions.Cauchy"}, "noise 'pyro.distributions.Cauchy' cannot be"),
        ({"noise": {"class_path": "torch.distributions.X"}}, "cannot be built"),
        ({"spread": [0.1, 0.2]}, "spread needs one value or one for each of the 1 layers, got 2"),
        ({"spread": 0.0}, "spread must be positive and finite, got 0.0"),
        ({"spread": math.inf}, "spread must be positive and finite, got inf"),
        ({"spread": 0.05, "learn_spread": True}, "must start above its floor 0.1, got 0.05"),
        (
            {"corpus": "nowhere"},
            "corpus must be one of enwik8, hmm, ptb, pydoc, text8, wikitext-103, wikitext-2 or the",
        ),
        (
            {"batch_size": 2000},
            r"split of text\d* has 1500 tokens, it needs at least 4000; .* smaller batch_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_written(
    text: Path, tmp_path: Path, changes: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(small(text, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(text: Path, finished: Path) -> None:
    before = (finished / "record.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume true, or"):
        train(small(text, finished))
    assert (finished / "record.json").read_bytes() == before


def test_another_architecture_does_not_resume_a_run(text: Path, finished: Path) -> None:
    config = TrainConfig.load(finished / "config.yaml")
    with pytest.raises(ValueError, match="has hidden_size 24, got 32; resume it with its own"):
        train(replace(config, hidden_size=32, resume=True))


def test_an_out_that_cannot_be_written_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* choose another folder"):
        train(small(text, tmp_path / "file" / "run"))


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_checkpoint_is_refused(text: Path, tmp_path: Path, keep: int) -> None:
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:keep])
    (last.parent / "previous.ckpt").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"last.ckpt is damaged, its file cannot be used \(it is trunc"
    ):
        train(replace(config, resume=True))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_without_its_best_checkpoint_a_run_says_what_is_missing(text: Path, tmp_path: Path) -> None:
    """If the last one, which is of the best epoch here until a second one is worse, is not it."""
    config = small(text, tmp_path / "run", epochs=1)
    train(config)
    best = tmp_path / "run" / "best.ckpt"
    best.write_bytes(b"junk")
    train(replace(config, resume=True))
    config = replace(config, epochs=2, learning_rate=1.0)
    assert train(replace(config, resume=True))["models"]["noisin"]["best_epoch"] == 1
    best.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"best.ckpt is damaged, .* bring it back from a copy"):
        train(replace(config, resume=True))
    best.unlink()
    with pytest.raises(ValueError, match="best.ckpt is missing; bring it back from a copy"):
        train(replace(config, resume=True))
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    train(replace(config, resume=True))


def test_a_run_does_not_go_on_with_another_text(text: Path, tmp_path: Path) -> None:
    """As many words, and as many different ones, but other ids."""
    shutil.copytree(text, tmp_path / "text")
    config = small(tmp_path / "text", tmp_path / "run", epochs=1)
    train(config)
    vocabulary = (tmp_path / "run" / "vocabulary.txt").read_text()
    for path in (tmp_path / "text").iterdir():
        path.write_text(path.read_text().replace("w1 ", "other "))
    with pytest.raises(
        ValueError, match="vocabulary.txt is of another text .* bring that text back"
    ):
        train(replace(config, epochs=2, resume=True))
    assert (tmp_path / "run" / "vocabulary.txt").read_text() == vocabulary
