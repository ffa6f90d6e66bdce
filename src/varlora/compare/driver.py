"""Runs what is missing of a plan, and writes what has been found.

plan.yaml ──► cells ──► those that are not done ──► engine ──► study ──► study.json, tables.md, report.html
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from varlora.compare.cell import Cell
from varlora.compare.engines import Engine, Outcome
from varlora.compare.estimate import Timer
from varlora.compare.gather import gather
from varlora.compare.lock import locked
from varlora.compare.plan import Plan
from varlora.compare.worker import write_cells
from varlora.folders import atomic_file
from varlora.report.study import Study
from varlora.report.study_page import write_study
from varlora.report.study_text import study_markdown
from varlora.runs import finite
from varlora.runs.folder import versions

PLAN, NUMBERS, TABLES, PAGE = "plan.yaml", "study.json", "tables.md", "report.html"


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
        del self.running[str(outcome.cell.folder)]
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


def run_cells(
    cells: Sequence[Cell], engine: Engine, *, timer: Timer, shown: Callable[[Watch, Outcome | None], None]
) -> tuple[Outcome, ...]:
    """Runs cells; those that fail do not stop the others.

    Args:
        cells: to run.
        engine: where.
        timer: of cells that are finished.
        shown: is called when a cell has begun, without an outcome, and when one has ended, with it.

    Returns:
        How each ended.
    """
    watch = Watch(timer=timer, at_once=engine.at_once, waiting=list(cells))

    def started(cell: Cell) -> None:
        watch.started(cell)
        shown(watch, None)

    outcomes = engine.run(cells, started)
    try:
        for outcome in outcomes:
            watch.ended(outcome)
            shown(watch, outcome)
    finally:
        outcomes.close()
    return tuple(watch.outcomes)


@contextmanager
def opened(plan: Plan, cells: Sequence[Cell]) -> Iterator[int]:
    """Within the block the plan's folder is this comparison's alone; its plan.yaml and cells.json are written.

    Yields:
        The file descriptor of the lock, which worker processes inherit.

    Raises:
        ValueError: another comparison is at work in it.
    """
    with locked(plan.output_dir) as lock:
        with atomic_file(plan.output_dir / PLAN, overwrite=True) as file:
            file.write_text(yaml.safe_dump(plan.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_cells(cells, plan.output_dir)
        yield lock


def finish(plan: Plan, cells: Sequence[Cell]) -> Study:
    """Gathers what has been found, and writes study.json, tables.md and report.html, each whole or not at all.

    Args:
        plan: the plan.
        cells: all of its cells.
    """
    study = gather(plan, cells)
    texts = {
        NUMBERS: json.dumps(finite(study_numbers(study)), indent=1, allow_nan=False) + "\n",
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
