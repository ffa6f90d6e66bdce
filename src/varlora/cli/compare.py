"""`varlora compare`: models × methods × tasks × seeds, from one file."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from varlora.cli.console import err, out
from varlora.stopping import reworded

if TYPE_CHECKING:
    from varlora.compare import Cell, Plan
    from varlora.compare.driver import Watch
    from varlora.compare.engines import Engine, Outcome
    from varlora.compare.estimate import Estimate

logger = logging.getLogger(__name__)

STATES = ("done", "partial", "unfinished", "failed", "missing")


def execute(arguments: Namespace) -> None:
    """Runs it."""
    _check(arguments)
    from varlora.compare import chosen, read_plan  # --help need not wait for torch
    from varlora.compare.code_version import code_version
    from varlora.compare.driver import PAGE, TABLES, finish, opened, run_cells
    from varlora.compare.engines import Inline, Ray, Workers, import_ray
    from varlora.compare.estimate import START_SECONDS, Timer, estimates_of
    from varlora.report.study_text import print_study

    plan = read_plan(
        arguments.plan,
        small=arguments.small,
        output_dir=arguments.output_dir,
        data=arguments.data,
        code_versions=arguments.code_version,
    )
    cells = plan.cells(arguments.only)
    wanted = chosen(cells, arguments.only)
    states = {cell.folder: cell.state() for cell in wanted}
    left = [cell for cell in wanted if states[cell.folder] != "done"]
    timer = Timer(cells)
    at_once = _at_once(arguments)
    shared = arguments.engine == "inline"  # one process for all cells
    estimates = estimates_of(left, timer, start=0 if shared else START_SECONDS)
    _show_plan(plan, wanted, states, estimates, at_once, start=START_SECONDS if shared else 0)
    _show_versions(wanted, left, code_version())
    if arguments.dry_run:
        return
    engine: Engine
    with opened(plan, cells) as lock, _quiet():
        left = [cell for cell in wanted if cell.state() != "done"]  # now that nobody else is at work there
        if arguments.engine == "inline":
            engine = Inline()
        elif arguments.engine == "workers":
            engine = Workers(
                output_dir=plan.output_dir, at_once=at_once, launcher=arguments.launcher or "", inherited=(lock,)
            )
            engine.command()  # whether the launcher is there
        else:
            import_ray()
            engine = Ray(limit=arguments.workers)
        try:
            with _progress(len(left), shown=not arguments.no_progress) as shown:
                outcomes = run_cells(left, engine, timer=timer, shown=shown) if left else ()
        except KeyboardInterrupt as stop:
            raise reworded(
                stop,
                f"interrupted. What is finished is in {plan.output_dir}; the same command goes on, an unfinished "
                f"training from its last checkpoint. `varlora report {plan.output_dir}` shows what is there.",
            ) from stop
        study = finish(plan, cells)
    print_study(study, out)
    where = escape(str(plan.output_dir))
    out.print(f"The tables are in [bold]{where}/{TABLES}[/bold]; open [bold]{where}/{PAGE}[/bold] in a browser.")
    _report_failures(outcomes)


def _check(arguments: Namespace) -> None:
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}; it must be at least 1.")
    if arguments.workers is not None and arguments.engine == "inline":
        raise ValueError(
            "--workers has no effect on --engine inline, which runs one cell at a time; add --engine workers."
        )
    if arguments.launcher is not None and arguments.engine != "workers":
        raise ValueError(f"--launcher has no effect on --engine {arguments.engine}; add --engine workers.")


def _at_once(arguments: Namespace) -> int:
    if arguments.workers is not None:
        return int(arguments.workers)
    if arguments.engine != "workers" or arguments.launcher is not None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _report_failures(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        lines = [f"{outcome.cell.title}: {outcome.error}\n  {outcome.cell.error_file}" for outcome in failed]
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} cells failed; the same command tries them again.\n" + "\n".join(lines)
        )


def _show_plan(
    plan: Plan,
    cells: Sequence[Cell],
    states: Mapping[Path, str],
    estimates: Mapping[str, Estimate],
    at_once: int,
    *,
    start: float,
) -> None:
    """The cells by state, and what those that are left will take."""
    counts = Counter(states.values())
    shown = [state for state in STATES if counts[state]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Model", "Task", "Method"):
        table.add_column(heading, overflow="fold")
    for heading in (*shown, "each", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    kinds: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault((cell.model, cell.task, cell.method), []).append(cell)
    for kind, members in sorted(kinds.items(), key=lambda item: _order(plan, item[0])):
        there = Counter(states[cell.folder] for cell in members)
        found = next((estimates[str(cell.folder)] for cell in members if str(cell.folder) in estimates), None)
        table.add_row(*map(escape, kind), *(str(there[state] or "") for state in shown), *_takes(found))
    out.print(table)
    sums = ", ".join(f"{counts[state]} {state}" for state in shown)
    out.print(f"{len(cells)} cells in {escape(str(plan.output_dir))}: {sums}.", highlight=False, soft_wrap=True)
    if estimates:
        _show_sum(list(estimates.values()), at_once, start)


def _order(plan: Plan, kind: tuple[str, str, str]) -> tuple[int, ...]:
    places = (list(plan.models), list(plan.tasks), list(plan.methods))
    return tuple(names.index(name) for names, name in zip(places, kind, strict=True))


def _takes(found: Estimate | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    seconds = "not known" if found.seconds is None else f"{'~' * (not found.measured)}{duration(found.seconds)}"
    return seconds, "not known" if found.memory is None else f"~{size(found.memory.total)}"


def _show_sum(estimates: Sequence[Estimate], at_once: int, start: float) -> None:
    from varlora.compare.estimate import operations_per_second

    known = [found.seconds for found in estimates if found.seconds is not None]
    lines = []
    if known:
        missing = len(estimates) - len(known)
        also = f", and {missing} for which it is not known" * (missing > 0)
        lines.append(
            f"About {duration(start + sum(known) / at_once)} for {len(known)} cells, {at_once} at a time{also}. "
            "A time with ~ is an estimate, the others are those of finished cells."
        )
    if any(not found.measured and found.seconds is not None for found in estimates):
        lines.append(f"Estimated from {operations_per_second(False)[1]}; docs/compare.md has the formula.")
    memories = [found.memory for found in estimates if found.memory is not None]
    if memories:
        most = max(memories, key=lambda memory: memory.total)
        parts = {"weights": most.frozen, "adapter and optimizer": most.adapter, "activations": most.activations}
        parts["logits"] = most.logits
        told = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
        lines.append(f"Memory, an estimate: at most {size(most.total)} in training ({told}).")
    lines += [f"Not known: {why}." for why in dict.fromkeys(found.unknown for found in estimates) if why]
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def _show_versions(cells: Sequence[Cell], left: Sequence[Cell], version: str) -> None:
    """Which cells are, or could be, those of another version of the code."""
    taken = Counter(cell.code_version for cell in cells if cell.code_version != version)
    for other, count in taken.items():
        logger.warning("%d cells were made by version %s of the code, not by this one (%s)", count, other, version)
    offered = Counter(other for cell in left if not cell.trained for other in cell.others())
    for other, count in offered.items():
        logger.warning(
            "%d of the missing cells were made by version %s of the code (this is %s); take them by --code_version %s",
            count,
            other,
            version,
            other,
        )


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[Watch, Outcome | None], None]]:
    """Shows a bar with the time left, and a line for each cell that has ended."""
    columns = (BarColumn(), MofNCompleteColumn(), _TimeLeft(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task("", total=total, watch=None)

        def show(watch: Watch, outcome: Outcome | None) -> None:
            left = _time_left(watch)
            running = "; ".join(cell.title for cell, _ in watch.running.values())
            bar.update(task, completed=len(watch.outcomes), watch=watch, description=escape(running))
            if outcome is not None:
                told = f"{len(watch.outcomes)}/{total} {outcome.cell.title}: {duration(outcome.seconds)}"
                told += "" if outcome.error is None else f", failed: {outcome.error}"
                logger.info("%s%s", told, f"; {left}" if left and len(watch.outcomes) < total else "")

        yield show


class _TimeLeft(ProgressColumn):
    """The time left, worked out anew whenever it is shown."""

    def render(self, task: Task) -> Text:
        """As of now."""
        return Text(_time_left(task.fields["watch"]))


def _time_left(watch: Watch | None) -> str:
    seconds = watch.seconds_left() if watch is not None else None
    return "" if seconds is None else f"about {duration(seconds)} left"


@contextmanager
def _quiet() -> Iterator[None]:
    """A line for each cell is enough: notes of the runs themselves are in the report. Warnings and --debug stay."""
    ours = logging.getLogger("varlora")
    before = ours.level
    if before == logging.INFO:
        ours.setLevel(logging.WARNING)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(before)
        logger.setLevel(logging.NOTSET)


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


def size(number: float) -> str:
    """Bytes for people.

    Example:
        >>> size(3.2e9), size(5e6), size(200)
        ('3 GiB', '4.8 MiB', '0.2 KiB')
    """
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if number >= limit:
            return f"{number / limit:.2g} {unit}" if number < 100 * limit else f"{number / limit:.0f} {unit}"
    return f"{number / 1024:.2g} KiB"
