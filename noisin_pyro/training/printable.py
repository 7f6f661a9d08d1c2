"""Makes text from files safe to show on a terminal or in Markdown."""

from __future__ import annotations

import re

__all__ = ["escape_markdown", "printable"]

#: Control characters except the newline, characters that change the direction of writing, and
#: halves of a surrogate pair, which cannot be encoded.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text without characters that control a terminal.

    Example:
        >>> printable("the \\x1b[2Jcat")
        'the [2Jcat'
    """
    return _CONTROL.sub("", text)


def escape_markdown(text: str) -> str:
    """The text on one line, with the characters escaped that Markdown would interpret.

    Example:
        >>> print(escape_markdown("a|b <i>"))
        a\\|b &lt;i>
    """
    line = " ".join(printable(text).split())
    return re.sub(r"([|`\\\[\]])", r"\\\1", line).replace("<", "&lt;")
