"""Text from elsewhere, such as a class's name, with nothing in it that a reader does not see."""

from __future__ import annotations

import unicodedata

_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that change the order in which what follows is shown."""
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates (which no file takes), and separators of lines and paragraphs."""


def visible(text: str, *, keep: str = "\t\n") -> str:
    r"""`text` with control characters, lone surrogates and marks of direction written as their escapes.

    Args:
        text: of any kind.
        keep: control characters to leave as they are.

    Example:
        >>> visible("a\x1b[31mb \u202e")
        'a\\x1b[31mb \\u202e'
    """
    return "".join(symbol if symbol in keep or not _hidden(symbol) else _escaped(symbol) for symbol in text)


def _hidden(symbol: str) -> bool:
    return symbol in _BIDIRECTIONAL or unicodedata.category(symbol) in _HIDDEN


def _escaped(symbol: str) -> str:
    number = ord(symbol)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
