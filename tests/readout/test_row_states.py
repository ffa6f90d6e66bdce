"""States of rows come back as they were given, from memory or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from varlora.readout.row_states import RowStates


def test_rows_come_back_as_they_were_given(tmp_path: Path) -> None:
    given = {n: torch.randn(1 + n % 3, 8, generator=torch.Generator().manual_seed(n)) for n in range(40)}
    given |= {n: given[n].bfloat16() for n in range(0, 40, 7)}
    states = RowStates(memory=400, folder=tmp_path)
    for key, rows in given.items():
        states[key] = rows.clone()
        assert states.bytes_in_memory <= 400
    assert states.num_files > 2
    for key, rows in given.items():
        assert states[key].dtype == rows.dtype
        assert torch.equal(states[key], rows)
    assert 40 not in states
    states.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_that_fits(tmp_path: Path) -> None:
    states = RowStates(memory=400, folder=tmp_path)
    states["a"] = torch.zeros(100)
    assert (states.num_files, list(tmp_path.iterdir())) == (0, [])


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="memory is 0 bytes; it must be positive"):
        RowStates(memory=0)
    states = RowStates(memory=400)
    states["a"] = torch.zeros(1)
    with pytest.raises(ValueError, match="known already"):
        states["a"] = torch.zeros(1)
