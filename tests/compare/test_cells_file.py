"""The file of cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compare.plans import plan
from varlora.compare.cells_file import CELLS, read_cells, write_cells


def test_the_file_of_cells_is_read_wherever_the_folder_is(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    cells = asked.cells()
    asked.output_dir.mkdir()
    write_cells(cells, asked.output_dir)
    assert read_cells(asked.output_dir) == cells
    there = tmp_path / "moved"
    asked.output_dir.rename(there)
    moved = read_cells(there)
    assert [cell.folder for cell in moved] == [there / cell.folder.relative_to(asked.output_dir) for cell in cells]
    assert all(cell.config.output_dir == str(cell.folder) for cell in moved)


def test_a_folder_without_cells_is_no_comparisons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the output_dir of a `varlora compare`"):
        read_cells(tmp_path)
    (tmp_path / CELLS).write_text("[")
    with pytest.raises(ValueError, match=r"cells\.json is not sound JSON"):
        read_cells(tmp_path)


def test_cells_file_is_plain_json(tmp_path: Path) -> None:
    asked = plan(tmp_path)
    asked.output_dir.mkdir()
    write_cells(asked.cells(), asked.output_dir)
    values = json.loads((asked.output_dir / CELLS).read_text())
    assert [value["method"] for value in values] == ["adamw", "ivon"]
