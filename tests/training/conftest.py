"""What the tests of whole runs share: a text, and a run on it."""

import random
from pathlib import Path

import pytest

from noisin_pyro.training.run import train
from tests.training.runs import small


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language with something to learn: each word has three likely successors."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for split, lines in (("train", 150), ("valid", 40), ("test", 40)):
        rows = []
        for _ in range(lines):
            word, row = draw.randrange(20), []
            for _ in range(9):
                row.append(f"w{word}")
                word = (3 * word + draw.choice([1, 2, 5])) % 20
            rows.append(" ".join(row))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(small(text, out, learn_spread=True, layers=2, dropout_layers=0.2))
    return out
