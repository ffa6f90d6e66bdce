"""The final answer of a worked solution: the number or the words that are right or wrong.

GSM8K ends a solution with a line "#### 42"; other texts are read by their last number. Numbers that are written
differently and are equal give the same string, so that answers can be compared, counted and stored.

Source: Cobbe et al. 2021, arXiv:2110.14168 (the line "####"); the last number otherwise is what the common evaluation
harnesses do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Literal

FinalAnswer = Literal["number", "text"]
"""How a final answer is read: the number at the end, or the whole text."""

# A minus behind a digit, a word or a bracket subtracts. Commas must part thousands; "1, 2" and "1,2" are two numbers.
_NUMBER = r"(?:(?<![\w)\]%])[-−–])?\$?(?:(?<=\$)[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
_NUMBERS = re.compile(_NUMBER)
_MARKED = re.compile(rf"####\s*({_NUMBER})")


def final_number(text: str) -> str | None:
    """The number behind the first "####" of a text, or else its last number; None where it has none.

    Thousands' commas, dollar signs and zeros at the end are left out: "$1,234.50" is "1234.5".

    Args:
        text: A worked solution.

    Example:
        >>> final_number("She sells 16 - 3 - 4 = 9 eggs. 9 * 2 = $18.\\n#### 18")
        '18'
        >>> final_number("The total is $1,234.50."), final_number("minus five is -5"), final_number("no idea")
        ('1234.5', '-5', None)
    """
    marked = _MARKED.search(text)
    written = marked[1] if marked else next(iter(reversed(_NUMBERS.findall(text))), None)
    if written is None:
        return None
    number = Decimal(re.sub(r"[−–]", "-", written.replace(",", "").replace("$", "")))
    plain = f"{number:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


def whole_text(text: str) -> str | None:
    """The text with single spaces between its words; None where it has none.

    Example:
        >>> whole_text(" a  fine film\\n"), whole_text(" ")
        ('a fine film', None)
    """
    return " ".join(text.split()) or None


FINAL_ANSWERS: Mapping[FinalAnswer, Callable[[str], str | None]] = {"number": final_number, "text": whole_text}
"""Each way to read a final answer; None where a text has none."""
