"""How long cells will take: what finished cells like them took, and nothing where there is none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from varlora.compare.cell import Cell
from varlora.io.files import read_json
from varlora.runs.folder import FACTS, Facts


class Timer:
    """Seconds of cells that are finished, and from them those of others.

    Args:
        cells: whose finished ones are read.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._seconds: dict[tuple[str, str, str], list[float]] = {}
        for cell in cells:
            if (seconds := seconds_of(cell)) is not None:
                self.add(cell, seconds)

    def add(self, cell: Cell, seconds: float) -> None:
        """Notes what a cell took."""
        self._seconds.setdefault((cell.model, cell.task, cell.method), []).append(seconds)

    def expected(self, cell: Cell) -> float | None:
        """The mean of cells that differ in the seed alone; else of those of the same model and task; else None."""
        if own := self._seconds.get((cell.model, cell.task, cell.method)):
            return statistics.fmean(own)
        place = (cell.model, cell.task)
        like = [
            value for (model, task, _), values in self._seconds.items() if (model, task) == place for value in values
        ]
        return statistics.fmean(like) if like else None


def seconds_of(cell: Cell) -> float | None:
    """What a finished run took by its own account: training and predictions, of the last try."""
    if not cell.trained:
        return None
    seconds = read_json(cell.folder / FACTS, Facts)["seconds"]
    return sum(float(value) for value in seconds.values() if value is not None)
