"""Finds the files of the three splits, or cuts one text into three. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["cut_lines", "find_splits"]


def find_splits(folder: Path, names: Sequence[Sequence[str]]) -> list[Path]:
    """Finds one file per split.

    Args:
        folder: the folder to look in.
        names: for each split, the file names it may have, the usual one first.

    Returns:
        One path per split, in the order of ``names``.

    Raises:
        ValueError: if the folder or the file of a split is missing.
    """
    if not folder.is_dir():
        wanted = ", ".join(usual for usual, *_ in names)
        raise ValueError(f"{folder} is not a folder; give the folder that holds {wanted}")
    candidates = [[folder / name for name in split if (folder / name).is_file()] for split in names]
    missing = [split for split, paths in zip(names, candidates, strict=True) if not paths]
    if missing:
        wanted = ", ".join(" or ".join(split) for split in missing)
        raise ValueError(f"{folder} lacks {wanted}; train, valid and test must all be there")
    return [paths[0] for paths in candidates]


def cut_lines(text: str) -> tuple[str, str, str]:
    """Cuts a text into its first 80 % of lines, the next 10 % and the last 10 %.

    The cuts are contiguous: running text keeps its order, and no line of the valid or test
    split stands between two that were trained on.

    Raises:
        ValueError: if the text has fewer than ten lines, which leaves a split empty.

    Example:
        >>> cut_lines("".join(f"{line}\\n" for line in range(10)))
        ('0\\n1\\n2\\n3\\n4\\n5\\n6\\n7\\n', '8\\n', '9\\n')
    """
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 10:
        raise ValueError(
            f"a text must have at least 10 lines to be split 80/10/10, got {len(lines)}; "
            "put one sentence on a line, or give a folder with train.txt, valid.txt, test.txt"
        )
    first, second = len(lines) * 8 // 10, len(lines) * 9 // 10
    train, valid, test = lines[:first], lines[first:second], lines[second:]
    return "\n".join(train) + "\n", "\n".join(valid) + "\n", "\n".join(test) + "\n"
