"""How often `tune` changes what needs no change, and what does: the benchmark's worlds, a few runs of each."""

from __future__ import annotations

import math

from tune_rates import WORLDS, rates


def test_where_nothing_helps_few_rows_change_little_and_lose_nothing() -> None:
    """Before c(N, M), WORTHWHILE and the prior on T, two in five runs were changed."""
    nothing, runs = WORLDS[0], 25
    found = rates(nothing, 30, runs)
    assert found.changed <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert found.gain > -0.002


def test_what_helps_is_found() -> None:
    found = rates(WORLDS[2], 200, 4)
    assert found.of_divisor + found.of_temperature == 1.0
    assert found.gain > 0.05
