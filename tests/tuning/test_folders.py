"""The files of a study: cut off, renamed, somebody else's."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.training.config import TrainConfig
from noisin_pyro.tuning import study
from noisin_pyro.tuning import tune as module
from noisin_pyro.tuning.tune import tune
from tests.training.disasters import half_written

FIXED = {"noise", "injection", "noise_to", "dropout_words", "dropout_input", "dropout_output"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat saw the dog and the dog saw the cat\n" * 60, encoding="utf-8")
    return path


def config(text: Path, out: Path, **options: Any) -> TrainConfig:
    sizes = {"hidden_size": 4, "embedding_size": 4, "layers": 1, "epochs": 1, "batch_size": 4}
    common = {"cell": "rnn_tanh", "quiet": True, "device": "cpu", "spread": 0.5}
    return TrainConfig(**{**sizes, **common, "corpus": str(text), "out": str(out), **options})


def search(text: Path, out: Path, trials: int, storage: str | None = None, **options: Any) -> Any:
    """The spreads and perplexities of the trials that there are then."""
    record = tune(config(text, out, **options), FIXED, trials, storage)
    return [(row["options"]["spread"], row["lowest"]) for row in record["trials"]]


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return search(text, tmp_path_factory.mktemp("whole") / "study", 3)


@pytest.mark.parametrize("lost", [1, 20, 150])
def test_a_journal_that_was_cut_off_goes_on(
    lost: int, text: Path, tmp_path: Path, whole: Any
) -> None:
    """As a full disk leaves it; the last entry is lost, and the trial that it ended goes on.

    The next entry was written behind what was left of it, and no command could read the study.
    """
    out = tmp_path / "study"
    search(text, out, 2)
    journal = out / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-lost])
    assert search(text, out, 3, resume=True) == whole
    assert search(text, out, 3, resume=True) == whole


def test_a_renamed_folder_goes_on(text: Path, tmp_path: Path, whole: Any) -> None:
    """It was taken for a new study in the old one's journal, and the trials were done again."""
    search(text, tmp_path / "old", 2)
    (tmp_path / "old").rename(tmp_path / "new")
    for name in ("new", "newer"):
        assert search(text, tmp_path / name, 3, resume=True) == whole
        journal = (tmp_path / name / "study.journal").read_text()
        assert set(re.findall('"study_name":"(.*?)"', journal)) == {"old"}
        if name == "new":
            (tmp_path / "new").rename(tmp_path / "newer")
            (tmp_path / "newer" / "study.id").write_text("")


def test_a_renamed_folder_with_a_storage_elsewhere_is_refused(text: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/a.db"
    search(text, tmp_path / "old", 1, storage)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(ValueError, match="new' has the study 'old' of the storage .*that name"):
        search(text, tmp_path / "new", 2, storage, resume=True)


@pytest.mark.parametrize("begun", [None, "a.db", "a.journal"])
def test_a_study_whose_storage_is_not_given_again_is_refused(
    begun: str | None, text: Path, tmp_path: Path
) -> None:
    """Its trials were done again, as those of a second study in the same folders."""
    out, storage = tmp_path / "study", f"sqlite:///{tmp_path}/a.db"
    if begun == "a.journal":
        storage = str(tmp_path / begun)
    first, second = (None, storage) if begun is None else (storage, None)
    search(text, out, 1, first)
    files = set(tmp_path.rglob("*journal*"))
    with pytest.raises(ValueError, match="begun a study that is not in .*it was begun with"):
        search(text, out, 2, second, resume=True)
    assert set(tmp_path.rglob("*journal*")) == files  # and no empty one
    assert len(search(text, out, 2, first, resume=True)) == 2


def studies(database: Path) -> list[str]:
    """The names of the studies in a database."""
    with closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT study_name FROM studies")]


def test_a_mistyped_database_is_refused_and_not_made(text: Path, tmp_path: Path) -> None:
    """An empty one was left behind, or an empty study in somebody else's."""
    out, storage = tmp_path / "study", f"sqlite:///{tmp_path}/a.db"
    search(text, out, 1, storage)
    search(text, tmp_path / "other", 1, f"sqlite:///{tmp_path}/others.db")
    for typed in ("b.db", "others.db"):
        with pytest.raises(ValueError, match=f"a study that is not in .*{typed}"):
            search(text, out, 2, f"sqlite:///{tmp_path}/{typed}", resume=True)
    assert not (tmp_path / "b.db").exists()
    assert studies(tmp_path / "others.db") == ["other"]
    assert len(search(text, out, 2, storage, resume=True)) == 2


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("", "storage is empty; leave it out"),
        ("sqlite:a.db", "'sqlite:a.db' is no URL; three slashes"),
        ("sqlite://a.db", "'sqlite://a.db' is no URL; three slashes"),
        ("sqlite:///:memory:", "is in memory and ends with this process; give the path"),
        ("sqlite://", "is in memory"),
    ],
)
def test_a_storage_that_is_no_place_is_refused(
    storage: str, reason: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal of that name was written; a study in memory could not be resumed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason):
        search(text, tmp_path / "study", 1, storage)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_fails_is_told(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a traceback of Optuna's."""
    database = tmp_path / "a.db"

    def break_it(*arguments: Any) -> None:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("ALTER TABLE trials RENAME TO gone")

    storage = f"sqlite:///{database}"
    monkeypatch.setattr(module, "carry_out", break_it)
    with pytest.raises(ValueError, match="a.db' cannot be used any more .*no such table: trials"):
        search(text, tmp_path / "study", 1, storage)


def test_a_kill_before_the_study_has_its_name(text: Path, tmp_path: Path, whole: Any) -> None:
    """The folder was taken for another's."""
    out = tmp_path / "study"
    out.mkdir()
    half_written(out / "study.id")
    assert search(text, out, 3, resume=True) == whole
    for name in ("study.json", "tune.png"):
        half_written(out / name)
    assert search(text, out, 3, resume=True) == whole
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize("content", ["one line", "two\nlines\n", "{}\n", "[1]\n", "3\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(
    content: str, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="notes.txt' cannot be used .*is no entry of a journal"):
        search(text, tmp_path / "new" / "study", 1, str(other))
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is no entry of a journal"):
        search(text, tmp_path / "mine", 1, str(other))
    assert (tmp_path / "mine").exists()
    assert other.read_text(encoding="utf-8") == content


def test_a_best_run_that_is_gone_is_told(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    search(text, out, 1)
    shutil.rmtree(study.trial_folder(out, 0))
    with pytest.raises(ValueError, match=r"best trial's run cannot be read \(.*study.json holds"):
        search(text, out, 1, resume=True)


@pytest.mark.parametrize(("epochs", "first"), [(9, 4), (8, 3), (5, 2), (3, 2)])
def test_no_trial_is_pruned_in_the_first_third_of_its_epochs(
    epochs: int, first: int, tmp_path: Path
) -> None:
    """Nor before four trials have ended, however bad it is."""
    config = TrainConfig(epochs=epochs, out=str(tmp_path / "study"))
    made = study.open_study(config, ("spread",), "text")

    def pruned_after(values: list[float]) -> int:
        trial = made.ask()
        for epoch, value in enumerate(values, 1):
            trial.report(value, epoch)
            if trial.should_prune():
                return epoch
        made.tell(trial, min(values))
        return 0

    falling = [100.0 - epoch for epoch in range(epochs)]
    worst = [500.0] * epochs
    ends = [pruned_after(values) for values in (falling, worst, falling, falling, worst, falling)]
    assert ends == [0, 0, 0, 0, first, 0]
