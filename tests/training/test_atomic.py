"""Files are complete or absent."""

import os
import time
from pathlib import Path

import pytest

from noisin_pyro.atomic import remove_partials, replacing
from tests.training.disasters import half_written


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_a_time_do_not_mix(tmp_path: Path) -> None:
    """The first to finish gave its name to the half that the other had written."""
    path = tmp_path / "table2.md"
    with replacing(path) as slow:
        with replacing(path) as quick:
            quick.write_text("quick")
            slow.write_text("half of the sl")
        assert path.read_text() == "quick"
        slow.write_text("slow")
    assert path.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "n" * 242 + ".safetensors", "ü" * 127, "[a]*?.md"])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"


def test_what_kills_left_does_not_pile_up(tmp_path: Path) -> None:
    path, other = tmp_path / "record[1].json", tmp_path / "record[1].json.mine.partial"
    other.write_text("a file of the user's")
    os.utime(other, (0, 0))
    fresh, old, another = map(half_written, (path, path, tmp_path / "record1.json"))
    for left in (old, another):
        os.utime(left, (time.time() - 90_000,) * 2)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert set(tmp_path.iterdir()) == {path, fresh, another, other}
    remove_partials(path)
    assert set(tmp_path.iterdir()) == {path, another, other}
