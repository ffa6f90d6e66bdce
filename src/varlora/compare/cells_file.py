"""cells.json: the cells of a comparison as it was last planned, from which workers and reports read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from varlora.compare.cell import Cell, CellFile
from varlora.io.files import read_json
from varlora.io.folders import atomic_file

CELLS = "cells.json"


def write_cells(cells: Iterable[Cell], folder: Path) -> Path:
    """Writes cells.json, whole or not at all."""
    with atomic_file(folder / CELLS, overwrite=True) as file:
        file.write_text(json.dumps([cell.to_dict() for cell in cells], indent=1) + "\n", encoding="utf-8")
    return folder / CELLS


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """The cells of an output folder, as `varlora compare` last planned them there.

    The folder may have been moved or copied since, and the data that the cells were trained on need not be there.

    Raises:
        ValueError: there is no cells.json, or it is damaged.
    """
    file = folder / CELLS
    if not file.exists():
        raise ValueError(f"{folder} has no {CELLS}; give the output_dir of a `varlora compare`.")
    cells = read_json(file, list[CellFile], instead="Run `varlora compare` again.")
    try:
        return tuple(_moved(values, folder) for values in cells)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error} Run `varlora compare` again.") from error


def _moved(values: CellFile, folder: Path) -> Cell:
    parts = Path(values["folder"]).parts[-3:]
    there = str(folder.joinpath(*parts))
    return Cell.from_dict({**values, "folder": there, "config": {**values["config"], "output_dir": there}})
