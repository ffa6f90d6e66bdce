"""`varlora compare`: models × methods × tasks × seeds, from one file."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from varlora.cli.console import err, out
from varlora.io.files import MEBIBYTE
from varlora.training.stopping import reworded

if TYPE_CHECKING:
    from varlora.compare import Cell, Plan
    from varlora.compare.driver import Watch
    from varlora.compare.executors import Job
    from varlora.compare.timer import Timer
    from varlora.compare.worker import Outcome

    Shown = Callable[[Watch, Outcome | None], None]

logger = logging.getLogger(__name__)

STATES = ("done", "running", "partial", "unfinished", "failed", "missing")


def execute(arguments: Namespace) -> None:
    """Runs it."""
    _check(arguments)
    from varlora.compare import chosen, read_plan  # --help need not wait for torch
    from varlora.compare.driver import PAGE, TABLES, cells_elsewhere, finish, write_plan
    from varlora.compare.executors import Job
    from varlora.compare.timer import Timer
    from varlora.compare.worker import failures_of
    from varlora.report.study_text import print_study

    plan = read_plan(
        arguments.plan,
        small=arguments.small,
        output_dir=arguments.output_dir,
        data=arguments.data,
        seeds=arguments.seeds,
        code_versions=arguments.code_version,
    )
    cells = plan.cells(arguments.only)
    wanted = chosen(cells, arguments.only)
    states = {cell.folder: cell.state() for cell in wanted}
    left = [cell for cell in wanted if states[cell.folder] != "done"]
    elsewhere = cells_elsewhere(left)
    timer = Timer(cells)
    shown_states = {c.folder: "running" if c.title in elsewhere else states[c.folder] for c in wanted}
    _show_plan(plan, wanted, shown_states, timer, _workers(arguments))
    _show_versions(wanted, left)
    _check_versions(arguments.code_version, cells)
    if arguments.dry_run:
        return
    write_plan(plan, cells)
    job = Job(
        output_dir=plan.output_dir,
        cells=tuple(cell.folder for cell in left),
        failures=failures_of(left),
        launcher=arguments.launcher or "",
        directory=Path.cwd(),
    )
    if arguments.executor == "slurm":
        _submit(plan, job, arguments)
        return
    with _quiet(), _resumable(plan.output_dir):
        outcomes = _run(arguments, job, left, timer) if left else ()
    where = escape(str(plan.output_dir))
    if elsewhere := cells_elsewhere(cells):
        running = "\n".join(f"  {title}: {holder}" for title, holder in elsewhere.items())
        out.print(
            f"Cells that run elsewhere:\n{escape(running)}\nWho ends last writes the tables; [bold]varlora report "
            f"{where}[/bold] shows what is there until then.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        print_study(finish(plan, cells), out)
        out.print(f"The tables are in [bold]{where}/{TABLES}[/bold]; open [bold]{where}/{PAGE}[/bold] in a browser.")
    _show_frozen_layers(wanted)
    _report_failures(outcomes)
    if arguments.executor != "inline":
        logs = "Ray's logs" if arguments.executor == "ray" else f"The logs in {plan.output_dir / 'jobs'}"
        _report_lost(logs, [cell for cell in left if cell.state() != "done" and cell.title not in elsewhere])


def _run(arguments: Namespace, job: Job, left: Sequence[Cell], timer: Timer) -> tuple[Outcome, ...]:
    """Does what is left, in this process or in others, and shows how it goes."""
    from varlora.compare.driver import Watch, follow, poll_cells
    from varlora.compare.executors import local_jobs, ray_jobs, threads_of_each

    workers = _workers(arguments)
    watch = Watch(timer=timer, at_once=workers or 1, waiting=list(left))
    with _progress(len(left), shown=not arguments.no_progress) as shown:

        def started(cell: Cell) -> None:
            watch.started(cell)
            shown(watch, None)

        if arguments.executor == "inline":
            return follow(job.take_cells(started), watch, shown)
        if arguments.executor == "local":
            count = min(workers or 1, len(left))
            jobs = local_jobs(replace(job, threads=None if job.launcher else threads_of_each(count)), count)
        else:
            jobs = ray_jobs(replace(job, threads=1), workers)
        with jobs as running:
            return follow(poll_cells(left, failures=job.failures, running=running, started=started), watch, shown)


def _submit(plan: Plan, job: Job, arguments: Namespace) -> None:
    """Puts jobs into Slurm's queue, and says how to follow them."""
    from varlora.compare.driver import TABLES
    from varlora.compare.executors import JOBS, submit_to_slurm

    if not job.cells:
        out.print("Nothing is left to run.")
        return
    count = min(arguments.workers, len(job.cells))
    number = submit_to_slurm(replace(job, alone=True), count, _slurm_options(arguments.slurm))
    where = escape(str(plan.output_dir))
    out.print(
        f"Slurm job {number} has {count} workers for {len(job.cells)} cells. Their logs are in "
        f"[bold]{where}/{JOBS}[/bold], and the last to end writes [bold]{where}/{TABLES}[/bold]. `varlora report "
        f"{where}` shows what is there, the same command with --dry_run what runs.",
        highlight=False,
        soft_wrap=True,
    )


def _check(arguments: Namespace) -> None:
    executor, workers = arguments.executor, arguments.workers
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}; it must be at least 1.")
    if workers is not None and executor == "inline":
        raise ValueError(
            "--workers has no effect on --executor inline, which does one cell at a time; add --executor local."
        )
    if workers is None and executor == "slurm":
        raise ValueError("--executor slurm needs to know how many jobs to queue; add --workers N.")
    if arguments.slurm and executor != "slurm":
        raise ValueError(f"--slurm has no effect on --executor {executor}; add --executor slurm.")
    slurm_options = _slurm_options(arguments.slurm)
    if executor == "slurm":
        from varlora.compare.executors import check_slurm_options

        check_slurm_options(slurm_options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "varlora compare was started as several processes that train together. Start one, which starts them for "
            "each cell: --launcher 'accelerate launch --num_processes N'."
        )
    if arguments.launcher is not None:
        from varlora.compare.launched import launcher_command

        launcher_command(arguments.launcher)  # whether it is there


def _slurm_options(words: Sequence[str]) -> dict[str, int | str]:
    options: dict[str, int | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"--slurm {word!r} must be KEY=VALUE, such as gpus_per_node=1.")
        options[name] = int(value) if value.isdigit() else value
    return options


def _workers(arguments: Namespace) -> int | None:
    """How many processes take cells; None leaves it to Ray."""
    if arguments.workers is not None or arguments.executor == "ray":
        workers: int | None = arguments.workers
        return workers
    if arguments.executor != "local" or arguments.launcher is not None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


@contextmanager
def _resumable(output_dir: Path) -> Iterator[None]:
    """Says, where the block is interrupted, how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise reworded(
            stop,
            f"interrupted. What is finished is in {output_dir}; the same command goes on, an unfinished training from "
            f"its last checkpoint. `varlora report {output_dir}` shows what is there.",
        ) from stop


def _show_frozen_layers(cells: Sequence[Cell]) -> None:
    """What the states of rows take that cells share."""
    for folder in dict.fromkeys(cell.config.frozen_layers_dir for cell in cells):
        if folder is not None and (size := sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))):
            out.print(
                f"States of frozen layers, which cells share, take {size / MEBIBYTE:.0f} MiB in "
                f"[bold]{escape(folder)}[/bold], which may be deleted whenever nothing runs.",
                highlight=False,
                soft_wrap=True,
            )


def _report_lost(logs: str, lost: Sequence[Cell]) -> None:
    if lost:
        raise ValueError(
            f"{len(lost)} cells are not done, and no worker is at work any more: {', '.join(c.title for c in lost)}. "
            f"{logs} may say why; the same command goes on."
        )


def _report_failures(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        lines = [f"{outcome.cell.title}: {outcome.error}\n  {outcome.cell.error_file}" for outcome in failed]
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} cells failed; the same command tries them again.\n" + "\n".join(lines)
        )


def _show_plan(
    plan: Plan, cells: Sequence[Cell], states: Mapping[Path, str], timer: Timer, workers: int | None
) -> None:
    """The cells by state, and how long cells like those that are left took."""
    counts = Counter(states.values())
    shown = [state for state in STATES if counts[state]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Model", "Task", "Method"):
        table.add_column(heading, overflow="fold")
    for heading in (*shown, "each"):
        table.add_column(heading, justify="right", no_wrap=True)
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
    out.print(f"{len(cells)} cells in {escape(str(plan.output_dir))}: {sums}.", highlight=False, soft_wrap=True)
    expected = [timer.expected(cell) for cell in cells if states[cell.folder] not in ("done", "running")]
    known = [seconds for seconds in expected if seconds is not None]
    if known:
        also = f"; of {len(expected) - len(known)} more no cell like them has been finished" if None in expected else ""
        at_once = workers or 1
        out.print(
            f"About {duration(sum(known) / at_once)} for {len(known)} cells, {at_once} at a time, by finished cells"
            f"{also}.",
            highlight=False,
            soft_wrap=True,
        )


def _order(plan: Plan, kind: tuple[str, str, str]) -> tuple[int, ...]:
    places = (list(plan.models), list(plan.tasks), list(plan.methods))
    return tuple(names.index(name) for names, name in zip(places, kind, strict=True))


def _show_versions(cells: Sequence[Cell], left: Sequence[Cell]) -> None:
    """Which cells are, or could be, those of another version of the code."""
    from varlora.compare.code_version import code_version

    own = {cell.folder: code_version(cell.config.method, cell.config.task) for cell in cells}
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


def _check_versions(named: Sequence[str], cells: Sequence[Cell]) -> None:
    """Refuses a version that has made no cell: all that was to be taken from it would be trained."""
    there = {version for cell in cells for version in (cell.code_version, *cell.others())}
    for version in named:
        if version not in there:
            known = ", ".join(sorted({v for cell in cells for v in cell.others()} - set(named))) or "none"
            raise ValueError(
                f"--code_version {version}: no cell of this plan was made by it; other versions that made some: "
                f"{known}."
            )


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Shown]:
    """Shows a bar with the time left, and a line for each cell that has ended."""
    columns = (BarColumn(), MofNCompleteColumn(), _TimeLeft(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task("", total=total, watch=None)

        def show(watch: Watch, outcome: Outcome | None) -> None:
            left = _time_left(watch)
            running = "; ".join(cell.title for cell, _ in watch.running.values())
            bar.update(task, completed=len(watch.outcomes), watch=watch, description=escape(running))
            if outcome is not None:
                told = f"{len(watch.outcomes)}/{total} {outcome.cell.title}: "
                told += "ended elsewhere" if outcome.elsewhere else duration(outcome.seconds)
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
