"""What counts as a number among an optimizer's options."""

from __future__ import annotations

import math
from typing import Any


def number_of(value: Any) -> float:
    """A number, or a tensor of one, as a float; NaN, which is in no range, for anything else.

    Example:
        >>> number_of(2), number_of(True), number_of("2")
        (2.0, nan, nan)
    """
    if isinstance(value, (int, float)):
        return math.nan if isinstance(value, bool) else float(value)
    from torch import Tensor  # plain numbers are checked without waiting for it

    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else math.nan
