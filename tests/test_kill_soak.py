"""benchmarks/kill_soak.py: a few kills of its many."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kill_soak import soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.parametrize("method", ["ivon", "ensemble"])
def test_runs_that_are_killed_end_like_one_that_is_not(method: str, tmp_path: Path) -> None:
    found = soak(tmp_path, kills=12, seed=1, method=method)
    assert found.kills.total() >= 12
    assert (found.failures, found.differences) == ([], [])
