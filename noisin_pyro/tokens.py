"""What a text is cut into, and how a character is spelled where a word may hold no whitespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

__all__ = ["EOS", "TOKENS", "UNK", "Tokens", "code_of", "join", "spell", "split"]

Tokens = Literal["words", "characters", "bytes"]
"""What a text is read as: words between whitespace, Unicode characters, or bytes of UTF-8."""

TOKENS: tuple[str, ...] = get_args(Tokens)

UNK = "<unk>"
EOS = "<eos>"
"""The end of a line; among characters and bytes it is the newline itself."""

_NEWLINE = ord("\n")


def spell(code: int, tokens: Tokens = "characters") -> str:
    """A character or a byte as a word: itself, or ``<0x20>`` where that would be invisible.

    Args:
        code: of the character, or the byte.
        tokens: which of the two it is; of bytes only those of ASCII are spelled as themselves.

    Example:
        >>> [spell(ord(character)) for character in "aß \\n\\t"]
        ['a', 'ß', '<0x20>', '<eos>', '<0x09>']
        >>> spell(0xDF, "bytes")
        '<0xDF>'
    """
    if code == _NEWLINE:
        return EOS
    visible = chr(code).isprintable() and chr(code) != " "
    return chr(code) if visible and (tokens == "characters" or code < 128) else f"<0x{code:02X}>"


def code_of(word: str) -> int | None:
    """The code that :func:`spell` spelled; None for any other word.

    Example:
        >>> code_of("a"), code_of("<0x20>"), code_of("<unk>")
        (97, 32, None)
    """
    if word == EOS:
        return _NEWLINE
    if len(word) == 1:
        return ord(word)
    try:
        code = int(word[3:-1], 16) if word[:3] == "<0x" and word[-1:] == ">" else -1
    except ValueError:
        return None
    return code if 0 <= code < 0x110000 else None


def split(text: str, tokens: Tokens) -> list[str]:
    """Cuts a short text, such as a prompt.

    Args:
        text: any text.
        tokens: into what.

    Example:
        >>> split("a cat", "words"), split("a c", "characters")
        (['a', 'cat'], ['a', '<0x20>', 'c'])
    """
    if tokens == "words":
        return text.replace("\n", f" {EOS} ").split()
    if tokens == "characters":
        return [spell(ord(character)) for character in text]
    return [spell(byte, tokens) for byte in text.encode("utf-8", "surrogateescape")]


def join(words: Iterable[str], tokens: Tokens) -> str:
    """The text of words or of spelled characters; bytes that are no UTF-8 become ``�``.

    Args:
        words: what :func:`split` gave.
        tokens: what they are.

    Example:
        >>> join(["a", "cat", "<eos>", "a", "dog"], "words")
        'a cat\\na dog'
        >>> join(split("é\\n", "bytes"), "bytes")
        'é\\n'
    """
    if tokens == "words":
        lines = " ".join(words).split(EOS)
        return "\n".join(line.strip() for line in lines)
    codes = [(word, code_of(word)) for word in words]
    if tokens == "characters":
        return "".join(word if code is None else chr(code) for word, code in codes)
    parts = (word.encode() if code is None or code > 255 else bytes([code]) for word, code in codes)
    return b"".join(parts).decode("utf-8", "replace")
