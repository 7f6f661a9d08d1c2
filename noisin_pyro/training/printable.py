"""Text from files, shown on a terminal or in Markdown."""

from __future__ import annotations

import re

__all__ = ["escape_markdown", "printable"]

#: Control characters but newlines, those that change the direction of writing, and halves of a
#: surrogate pair, which no encoding has.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor, colours it or changes its title.

    Example:
        >>> printable("the \\x1b[2Jcat")
        'the [2Jcat'
    """
    return _CONTROL.sub("", text)


def escape_markdown(text: str) -> str:
    """The text as Markdown shows it, on one line.

    Example:
        >>> print(escape_markdown("a|b <i>"))
        a\\|b &lt;i>
    """
    line = " ".join(printable(text).split())
    return re.sub(r"([|`\\\[\]])", r"\\\1", line).replace("<", "&lt;")
