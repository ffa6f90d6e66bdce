"""A worker: one process that takes cells of a plan, one after the other, until none is free.

Any number of workers, on any machines, may take from one folder: a lock for each cell (`CellLock`) gives it to one of
them. Every way to run a comparison is such workers, started by whatever starts processes.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from varlora.compare.cell import Cell
from varlora.compare.cell_lock import CellLock
from varlora.compare.code_version import code_version
from varlora.compare.timer import seconds_of
from varlora.compare.variants import ensure_variants
from varlora.io.user_warnings import log_user_warnings
from varlora.runs.checkpoints import can_resume, checkpoints_of
from varlora.runs.run import run

SECONDS_BETWEEN_LOOKS = 1.0
WARNING = "warning: "
"""How a warning's line begins in the log of a process that has no console of its own."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: the cell.
        seconds: wall clock.
        error: what went wrong, in one line; None if nothing did. More is in the cell's error file.
        elsewhere: whether another process did it.
    """

    cell: Cell
    seconds: float
    error: str | None = None
    elsewhere: bool = False


def take_cells(
    cells: Sequence[Cell],
    *,
    failures: Mapping[str, int],
    started: Callable[[Cell], None],
    execute: Callable[[Cell], None],
) -> Generator[Outcome, None, None]:
    """Takes cells that no other process has, and yields each as it ends; one that fails stops no other.

    A cell that another process has is left to it. The iteration ends when nothing else is left; the lock of a process
    that is dead is taken over, after the cells that nobody has begun, so that what killed it kills no second one
    before these are done.

    Args:
        cells: that are not done, in the order in which they are to begin.
        failures: of cells that have failed before and are to be tried again (`failures_of`).
        started: is told of each cell that begins.
        execute: does a cell.
    """
    locks = [CellLock(cell) for cell in cells]
    while locks:
        for lock in sorted(locks, key=lambda lock: lock.exists):
            with lock.acquire() as acquired:
                outcome = _do(lock.cell, failures, started, execute) if acquired else None
            if outcome is not None:
                locks.remove(lock)
                yield outcome
                break
        else:
            unclear = [lock.is_unclear() for lock in locks]  # each is looked at
            if not any(unclear):
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def execute_cell(cell: Cell, *, progress: bool = False) -> None:
    """Trains if that has not been done, from the last checkpoint if there is one; then makes the missing variants.

    Args:
        cell: what to do; its `prepare` has been called.
        progress: show the trainings' own progress bars.

    Raises:
        ValueError: the cell does not fit, or it was planned with another version of the code.
    """
    if not cell.trained:
        version = code_version(cell.config.method, cell.config.task)
        if cell.code_version != version:
            raise ValueError(
                f"varlora's source is version {version} now, and this comparison began with {cell.code_version}; its "
                "results must not mix. Start it again."
            )
        resume = can_resume(checkpoints_of(cell.config), cell.config)
        source = cell.generated.in_words if cell.generated is not None else None
        run(cell.config, resume=resume, overwrite=not resume, progress=progress, source=source)
    if PartialState().is_main_process:
        ensure_variants(cell.folder, cell.variants, config=cell.config, progress=progress)


class _Formatter(logging.Formatter):
    """The message, and before a warning's what tells it from the rest."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{WARNING if record.levelno == logging.WARNING else ''}{super().format(record)}"


def log_to_stderr() -> None:
    """Lets a process that has no console of its own write its log, without every request to the hub."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    log_user_warnings()


def warnings_in(log: Path) -> list[str]:
    """The warnings in a log that `log_to_stderr` has written, each once."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return list(dict.fromkeys(line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)))


def failures_of(cells: Sequence[Cell]) -> dict[str, int]:
    """When the cells failed that have failed, by their folders: a later failure is another process's, just now."""
    return {str(cell.folder): _failed_at(cell) for cell in cells if cell.error_file.is_file()}


def ended_elsewhere(cell: Cell, failures: Mapping[str, int]) -> Outcome | None:
    """How another process has ended a cell; None if there is something to do.

    Args:
        cell: which nobody works on.
        failures: as of `take_cells`.
    """
    state = cell.state()
    if state == "done":
        return Outcome(cell=cell, seconds=seconds_of(cell) or 0.0, elsewhere=True)
    if state == "failed" and failures.get(str(cell.folder)) != _failed_at(cell):
        lines = cell.error_file.read_text(encoding="utf-8").strip().splitlines()
        return Outcome(cell=cell, seconds=0.0, error=lines[-1] if lines else "no message", elsewhere=True)
    return None


def _do(
    cell: Cell, failures: Mapping[str, int], started: Callable[[Cell], None], execute: Callable[[Cell], None]
) -> Outcome:
    """Does a cell whose lock this process has, if no other has done it meanwhile."""
    if (outcome := ended_elsewhere(cell, failures)) is not None:
        return outcome
    started(cell)
    cell.prepare()
    start, error = time.perf_counter(), None
    try:
        execute(cell)
    except Exception as failure:  # noqa: BLE001  of whatever kind, it must not stop the other cells
        first = (str(failure).strip().splitlines() or ["no message"])[0]
        error = f"{type(failure).__name__}: {first}"
        cell.error_file.parent.mkdir(parents=True, exist_ok=True)
        cell.error_file.write_text(traceback.format_exc(), encoding="utf-8")
    else:
        cell.error_file.unlink(missing_ok=True)
    outcome = Outcome(cell=cell, seconds=time.perf_counter() - start, error=error)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return outcome


def _failed_at(cell: Cell) -> int:
    return cell.error_file.stat().st_mtime_ns
