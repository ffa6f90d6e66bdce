"""Text as Markdown shows it: as it is, in a paragraph, a heading, an item of a list, a cell of a table, or as code."""

from __future__ import annotations

import re
from typing import Any

from varlora.io.visible import visible

_BLOCK = re.compile(r"(#{1,6}|[-+]|\d{1,9}[.)])(?=\s|$)|[-=]{2,}$")
"""What makes a heading, a list or a rule at the start of a line."""
_CLOSING = re.compile(r"(?<=\s)#+$")
"""What a heading may end with, and does not show."""


def escape_markdown(text: str) -> str:
    r"""`text` so that Markdown shows it as it is, on one line, in a table too.

    Example:
        >>> escape_markdown("a|b *c* <i>"), escape_markdown("# 1")
        ('a\\|b \\*c\\* &lt;i&gt;', '\\# 1')
    """
    text = " ".join(visible(text).split())
    for symbol in "\\`*_[]|~":
        text = text.replace(symbol, f"\\{symbol}")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if (start := _BLOCK.match(text)) is not None:
        mark = start.end() - 1 if start[0][0].isdigit() else 0
        text = f"{text[:mark]}\\{text[mark:]}"
    return _CLOSING.sub(r"\\\g<0>", text)


def inline_code(text: Any) -> str:
    """`text` as code in a line: within more backticks than stand in it in a row.

    Not for cells of tables, whose bars end code, too.

    Example:
        >>> inline_code("a ``b`` <i>")
        '``` a ``b`` <i> ```'
    """
    shown = " ".join(visible(str(text)).split())
    if not shown:
        return "(empty)"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " * ("`" in shown)
    return f"{fence}{pad}{shown}{pad}{fence}"
