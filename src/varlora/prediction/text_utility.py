"""How good a text is where another is right: what a minimum-Bayes-risk choice among texts is made by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Utility = Callable[[str, str], float]
"""(candidate, reference) → the larger, the better."""


def token_f1(candidate: str, reference: str) -> float:
    """The harmonic mean of precision and recall of a text's words, as often as they stand there; order aside.

    Example:
        >>> round(token_f1("the cat sat", "the cat sat down"), 2), token_f1("", ""), token_f1("a", "b")
        (0.86, 1.0, 0.0)
    """
    ours, theirs = Counter(candidate.split()), Counter(reference.split())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
