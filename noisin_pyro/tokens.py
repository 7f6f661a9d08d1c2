"""Tokens: words, characters or bytes, all as strings without whitespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

__all__ = ["EOS", "TOKENS", "UNK", "Tokens", "code_of", "join", "spell", "split"]

Tokens = Literal["words", "characters", "bytes"]
"""The kind of tokens: words between whitespace, Unicode characters, or bytes of UTF-8."""

TOKENS: tuple[str, ...] = get_args(Tokens)

UNK = "<unk>"
EOS = "<eos>"
"""The end of a line. Among characters and bytes it is the newline character."""

_NEWLINE = ord("\n")


def spell(code: int, tokens: Tokens = "characters") -> str:
    """The token of a character or a byte: the character, or a form such as ``<0x20>``.

    Newline is ``<eos>``. The hexadecimal form stands for whitespace, for other invisible
    characters, and for bytes outside ASCII.

    Args:
        code: the character's code point, or the byte's value.
        tokens: ``"characters"`` or ``"bytes"``.

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
    """The inverse of :func:`spell`: the code of a token; None for any other word.

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
    """Splits a short text, such as a prompt, into tokens.

    Args:
        text: the text.
        tokens: the kind of tokens.

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
    """The text of a sequence of tokens; bytes that are not UTF-8 become ``�``.

    Args:
        words: the tokens, such as :func:`split` returns.
        tokens: the kind of tokens.

    Example:
        >>> join(["a", "cat", "<eos>", "a", "dog"], "words")
        'a cat\\na dog'
        >>> join(split("é\\n", "bytes"), "bytes")
        'é\\n'
    """
    if tokens == "words":
        lines: list[list[str]] = [[]]
        for word in words:
            if word == EOS:
                lines.append([])
            else:
                lines[-1].append(word)
        return "\n".join(map(" ".join, lines))
    codes = [(word, code_of(word)) for word in words]
    if tokens == "characters":
        return "".join(word if code is None else chr(code) for word, code in codes)
    parts = (word.encode() if code is None or code > 255 else bytes([code]) for word, code in codes)
    return b"".join(parts).decode("utf-8", "replace")
