"""A hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """The known name that is nearest to an unknown one, as a hint.

    Args:
        name: what was given.
        known: what exists.
        otherwise: the hint when nothing is near; all that is known by default.

    Example:
        >>> nearest("lora_rank", ["lora_r", "seed"])
        "did you mean 'lora_r'?"
        >>> nearest("zzz", ["lora_r", "seed"])
        'known: lora_r, seed.'
    """
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1):
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}." if otherwise is None else otherwise
