"""One cell, done: in this process, or as a process of its own, `python -m varlora.compare.worker FOLDER CELL`.

The process ends when its standard input does, a training after its step, with a checkpoint: its parent holds the other
end, and the system closes that when the parent dies in whatever way. Under a launcher of several processes each of them
watches the same input.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from accelerate import PartialState

from varlora.compare.cell import Cell, CellFile
from varlora.compare.code_version import code_version
from varlora.compare.variants import ensure_variants
from varlora.files import read_json
from varlora.folders import atomic_file
from varlora.runs import run
from varlora.runs.checkpoints import can_resume, checkpoints_of
from varlora.stopping import Stopped, ask_to_stop

CELLS = "cells.json"
ORPHANED = 129
SECONDS_TO_SAVE = 10.0
"""That a training has to end after its step, before the process ends all the same."""


def execute_cell(cell: Cell, *, progress: bool = False) -> None:
    """Trains if that has not been done, from the last checkpoint if there is one; then makes the missing variants.

    Args:
        cell: what to do; its `prepare` has been called.
        progress: show the trainings' own progress bars.

    Raises:
        ValueError: the cell does not fit, or it was planned with another version of the code.
    """
    if not cell.trained:
        if cell.code_version != code_version():
            raise ValueError(
                f"varlora's source is version {code_version()} now, and this comparison began with "
                f"{cell.code_version}; its results must not mix. Start it again."
            )
        resume = can_resume(checkpoints_of(cell.config), cell.config)
        source = cell.generated.in_words if cell.generated is not None else None
        run(cell.config, resume=resume, overwrite=not resume, progress=progress, source=source)
    if PartialState().is_main_process:
        ensure_variants(cell.folder, cell.variants, config=cell.config, progress=progress)


def write_cells(cells: Iterable[Cell], folder: Path) -> Path:
    """Writes cells.json, from which workers and reports read the cells, whole or not at all."""
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
    found = read_json(file, list[CellFile], instead="Run `varlora compare` again.")
    try:
        return tuple(_moved(values, folder) for values in found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error} Run `varlora compare` again.") from error


def main(arguments: list[str]) -> None:
    """Does one of the cells that cells.json lists, while standard input is open.

    Args:
        arguments: the output folder, and the cell's folder.
    """
    folder, wanted = map(Path, arguments)
    threading.Thread(target=_end_with_input, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        execute_cell(next(cell for cell in read_cells(folder) if cell.folder == wanted))
    except Stopped as stop:
        logging.error("%s", stop)
        sys.exit(stop.exit_code)


def _moved(values: CellFile, folder: Path) -> Cell:
    parts = Path(values["folder"]).parts[-3:]
    there = str(folder.joinpath(*parts))
    return Cell.from_dict({**values, "folder": there, "config": {**values["config"], "output_dir": there}})


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    if ask_to_stop():  # a training ends after its step, with a checkpoint
        time.sleep(SECONDS_TO_SAVE)
    os._exit(ORPHANED)


if __name__ == "__main__":
    main(sys.argv[1:])
