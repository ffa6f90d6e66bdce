"""Numbers and lists as English."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """A number of things.

    Args:
        number: how many.
        noun: one of them; its plural ends in s.

    Example:
        >>> counted(1, "row"), counted(2, "row"), counted(12000, "example")
        ('1 row', '2 rows', '12000 examples')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listing(items: Sequence[str]) -> str:
    """Things in a sentence: "a", "a and b", "a, b and c".

    Example:
        >>> listing(["accuracy", "NLL", "ECE"])
        'accuracy, NLL and ECE'
    """
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
