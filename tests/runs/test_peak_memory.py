"""The most memory of a run, in a process that has done other runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from varlora.runs import peak_memory
from varlora.runs.peak_memory import PeakMemory

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch's own count is read there")
LARGE, SMALL = 2**28, 2**26


def held(size: int) -> int | None:
    """The peak of a run that holds so many bytes for a moment."""
    memory = PeakMemory()
    bytearray(size)
    return memory.peak()


@pytest.mark.skipif(not peak_memory.FORGET.is_file(), reason="only Linux forgets a peak")
def test_an_earlier_run_that_held_more_does_not_count() -> None:
    large, small = held(LARGE), held(SMALL)
    assert large is not None
    assert small is not None
    assert large - small > LARGE / 2


def test_where_an_earlier_peak_hides_it_it_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "FORGET", tmp_path / "nowhere" / "clear_refs")
    assert held(2 * LARGE) is not None
    assert held(SMALL) is None
