"""What the terminal shows of a plan's cells: their states, how long they take, and whose code made them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column

from varlora.cli.console import numbers_table, out, say
from varlora.compare import Cell, Plan, code_version
from varlora.compare.timer import Timer

logger = logging.getLogger(__name__)

STATES = ("done", "running", "partial", "unfinished", "failed", "missing")


def show_plan(plan: Plan, cells: Sequence[Cell], states: Mapping[Path, str], timer: Timer, workers: int | None) -> None:
    """Shows cells by model, task, method and state, and how long cells like those that are left took.

    Args:
        plan: the plan, whose order they have.
        cells: its cells, or some.
        states: theirs, by folder.
        timer: seconds of finished cells.
        workers: processes that take cells; None where that is not known.
    """
    counts = Counter(states.values())
    shown = [state for state in STATES if counts[state]]
    names = (Column(heading, overflow="fold") for heading in ("Model", "Task", "Method"))
    table = numbers_table(*names, *shown, "each")
    kinds: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault((cell.model, cell.task, cell.method), []).append(cell)
    for kind, members in sorted(kinds.items(), key=lambda item: _order(plan, item[0])):
        there = Counter(states[cell.folder] for cell in members)
        seconds = timer.expected(members[0])
        took = "" if seconds is None else duration(seconds)
        table.add_row(*map(escape, kind), *(str(there[state] or "") for state in shown), took)
    out.print(table)
    sums = ", ".join(f"{counts[state]} {state}" for state in shown)
    say(f"{len(cells)} cells in {escape(str(plan.output_dir))}: {sums}.")
    expected = [timer.expected(cell) for cell in cells if states[cell.folder] not in ("done", "running")]
    known = [seconds for seconds in expected if seconds is not None]
    if known:
        also = f"; of {len(expected) - len(known)} more no cell like them has been finished" if None in expected else ""
        at_once = workers or 1
        say(
            f"About {duration(sum(known) / at_once)} for {len(known)} cells, {at_once} at a time, by finished cells"
            f"{also}."
        )


def _order(plan: Plan, kind: tuple[str, str, str]) -> tuple[int, ...]:
    places = (list(plan.models), list(plan.tasks), list(plan.methods))
    return tuple(names.index(name) for names, name in zip(places, kind, strict=True))


def show_versions(cells: Sequence[Cell], left: Sequence[Cell]) -> None:
    """Warns of cells that are, or could be, those of another version of the code.

    Args:
        cells: those that are wanted.
        left: those of them that are not done.
    """
    own = {cell.folder: code_version.code_version(cell.config.method, cell.config.task) for cell in cells}
    taken = Counter(cell.code_version for cell in cells if cell.code_version != own[cell.folder])
    for other, count in taken.items():
        logger.warning("%d cells were made by version %s of the code, not by this one", count, other)
    offered = Counter(other for cell in left if not cell.trained for other in cell.others())
    for other, count in offered.items():
        logger.warning(
            "%d of the missing cells were made by version %s of the code, not by this one; take them by "
            "--code_version %s",
            count,
            other,
            other,
        )


def check_versions(named: Sequence[str], cells: Sequence[Cell]) -> None:
    """Refuses a version that has made no cell: all that was to be taken from it would be trained.

    Raises:
        ValueError: there is such a one; the message lists those that made some.
    """
    there = {version for cell in cells for version in (cell.code_version, *cell.others())}
    for version in named:
        if version not in there:
            known = ", ".join(sorted({v for cell in cells for v in cell.others()} - set(named))) or "none"
            raise ValueError(
                f"--code_version {version}: no cell of this plan was made by it; other versions that made some: "
                f"{known}."
            )


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(8.2), duration(90), duration(3 * 3600 + 1700), duration(2.2 * 86400)
        ('8 s', '2 min', '3.5 h', '2.2 days')
    """
    for limit, unit, size in ((60, "s", 1), (5400, "min", 60), (129600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.2g} h"
    return f"{seconds / 86400:.2g} days"
