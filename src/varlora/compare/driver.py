"""Follows the cells of a plan while workers take them, and writes what came of them.

plan.yaml ──► cells ──► those that are not done ──► workers ──► study ──► study.json, tables.md, report.html
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from varlora.compare.cell import Cell
from varlora.compare.cell_lock import CellLock, make_lease
from varlora.compare.cells_file import write_cells
from varlora.compare.gather import gather
from varlora.compare.plan import Plan
from varlora.compare.timer import Timer
from varlora.compare.worker import Outcome, ended_elsewhere
from varlora.io.files import json_text
from varlora.io.folders import atomic_file, check_can_be_folder
from varlora.report.study import Study
from varlora.report.study_page import write_study
from varlora.report.study_text import study_markdown
from varlora.runs.folder import versions

PLAN, NUMBERS, TABLES, PAGE = "plan.yaml", "study.json", "tables.md", "report.html"
REPORT_LOCK = ".report.lock"


@dataclass(kw_only=True)
class Watch:
    """How far the cells have come, for whoever shows it.

    Attributes:
        timer: seconds of finished cells.
        at_once: cells at a time.
        waiting: cells that have not begun.
        running: those that run, and when they began (`time.monotonic`).
        outcomes: of those that have ended.
    """

    timer: Timer
    at_once: int
    waiting: list[Cell] = field(default_factory=list)
    running: dict[str, tuple[Cell, float]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def started(self, cell: Cell) -> None:
        """Notes that a cell has begun."""
        self.waiting = [other for other in self.waiting if other.folder != cell.folder]
        self.running[str(cell.folder)] = (cell, time.monotonic())

    def ended(self, outcome: Outcome) -> None:
        """Notes how a cell ended."""
        self.waiting = [other for other in self.waiting if other.folder != outcome.cell.folder]
        self.running.pop(str(outcome.cell.folder), None)
        self.outcomes.append(outcome)
        if outcome.error is None:
            self.timer.add(outcome.cell, outcome.seconds)

    def seconds_left(self) -> float | None:
        """About how long it will take yet; None while nothing like one of the cells has been finished."""
        now = time.monotonic()
        ahead = [self.timer.expected(cell) for cell in self.waiting]
        under_way = [(self.timer.expected(cell), now - start) for cell, start in self.running.values()]
        if any(seconds is None for seconds in (*ahead, *(seconds for seconds, _ in under_way))):
            return None
        left = sum(seconds for seconds in ahead if seconds is not None)
        left += sum(max(0.0, seconds - gone) for seconds, gone in under_way if seconds is not None)
        return left / max(1, min(self.at_once, len(self.waiting) + len(self.running)))


def follow(
    outcomes: Iterable[Outcome], watch: Watch, shown: Callable[[Watch, Outcome | None], None]
) -> tuple[Outcome, ...]:
    """Notes and shows how cells end.

    Args:
        outcomes: as they come.
        watch: notes them.
        shown: is called for each.

    Returns:
        All.
    """
    for outcome in outcomes:
        watch.ended(outcome)
        shown(watch, outcome)
    return tuple(watch.outcomes)


def poll_cells(
    cells: Sequence[Cell],
    *,
    failures: Mapping[str, int],
    running: Callable[[], bool],
    started: Callable[[Cell], None],
    pause: float = 0.5,
) -> Iterator[Outcome]:
    """Yields each cell as it ends in another process, by its lock and its state.

    Args:
        cells: that are not done.
        failures: as of `take_cells`.
        running: whether there are processes yet that take some.
        started: is told of each cell that is seen to begin.
        pause: seconds between looks.
    """
    locks, begun = {cell.folder: (cell, CellLock(cell)) for cell in cells}, set[Any]()
    goes_on = True
    while locks and goes_on:
        goes_on = running()  # before the look, so that there is one after the last has ended
        for folder, (cell, lock) in list(locks.items()):
            if lock.holder() is not None:
                if folder not in begun:
                    started(cell)
                begun.add(folder)
            elif (folder in begun or not goes_on) and (outcome := ended_elsewhere(cell, failures)) is not None:
                del locks[folder]
                yield dataclasses.replace(outcome, elsewhere=False)
        if goes_on:
            time.sleep(pause)


def write_plan(plan: Plan, cells: Sequence[Cell]) -> None:
    """Writes plan.yaml and cells.json into the plan's folder.

    Raises:
        ValueError: it cannot be a folder, or cannot be written to.
    """
    check_can_be_folder(plan.output_dir)
    try:
        plan.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_file(plan.output_dir / PLAN, overwrite=True) as file:
            file.write_text(yaml.safe_dump(plan.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_cells(cells, plan.output_dir)
    except OSError as error:
        raise ValueError(
            f"{plan.output_dir} cannot be written to ({error.strerror}). Choose another output_dir (--output_dir); "
            f"`varlora report {plan.output_dir}` shows what is in it."
        ) from error


def cells_elsewhere(cells: Sequence[Cell]) -> dict[str, str]:
    """The cells that other processes work on: title → who, in words."""
    holders = {cell.title: CellLock(cell).holder() for cell in cells}
    return {title: holder for title, holder in holders.items() if holder is not None}


def finish(plan: Plan, cells: Sequence[Cell]) -> Study:
    """Gathers what there is, and writes study.json, tables.md and report.html, each whole or not at all.

    Processes that end at the same time do so one after the other: the last one's is of all cells.

    Args:
        plan: the plan.
        cells: all of its cells.
    """
    with make_lease(plan.output_dir / REPORT_LOCK):
        study = gather(plan, cells)
        texts = {
            NUMBERS: json_text(study_numbers(study), indent=1),
            TABLES: study_markdown(study),
        }
        for name, text in texts.items():
            with atomic_file(plan.output_dir / name, overwrite=True) as file:
                file.write_text(text, encoding="utf-8")
        write_study(study, plan.output_dir / PAGE, version=versions()["varlora"])
    return study


def study_numbers(study: Study) -> dict[str, Any]:
    """A study's numbers, plain: metrics with their intervals and differences, by block, and what they cost."""
    return {
        "name": study.name,
        "reference": study.reference,
        "command": study.command,
        "settings": study.settings,
        "versions": dict(study.versions),
        "code_versions": list(study.code_versions),
        "blocks": [
            {
                "model": block.model,
                "task": block.task,
                "missing": list(block.missing),
                "notes": list(block.notes),
                "comparison": block.comparison.to_dict() if block.comparison is not None else None,
                "detection": block.detection,
                "completions": block.completions,
                "frontiers": [dataclasses.asdict(frontier) for frontier in block.frontiers],
                "costs": [dataclasses.asdict(cost) for cost in block.costs],
            }
            for block in study.blocks
        ],
    }
