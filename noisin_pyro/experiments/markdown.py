"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import DataRow, TableFormat, tabulate

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], rule: str = " --- ") -> str:
    """A table whose cells are not padded, so that a change in one row changes no other line.

    Args:
        head: the titles of the columns.
        rows: the cells of each row.
        rule: the cell of the line below the titles.

    Example:
        >>> print(markdown_table(["model", "test"], [["NOISIN", "131.9"]]))
        | model | test |
        | --- | --- |
        | NOISIN | 131.9 |
    """
    row = DataRow("| ", " | ", " |")
    below = "|" + f"{rule}|" * len(head)
    style = TableFormat(None, lambda widths, aligns: below, None, None, row, row, 0, None)
    return tabulate(rows, head, tablefmt=style, stralign=None, numalign=None, disable_numparse=True)
