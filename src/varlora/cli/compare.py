"""`varlora compare`: models × methods × tasks × seeds, from one file."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from varlora.cli.cells import check_versions, duration, show_plan, show_versions
from varlora.cli.console import err, out, say
from varlora.compare import Cell, Plan, chosen, executors, local_jobs, read_plan
from varlora.compare.driver import PAGE, TABLES, Watch, cells_elsewhere, finish, follow, poll_cells, write_plan
from varlora.compare.launched import launcher_command
from varlora.compare.timer import Timer
from varlora.compare.worker import Outcome, failures_of
from varlora.io.files import MEBIBYTE
from varlora.report.study_text import print_study
from varlora.training.stopping import reworded

Show = Callable[[Watch, Outcome | None], None]

logger = logging.getLogger(__name__)


def execute(arguments: Namespace) -> None:
    """Runs it."""
    _check(arguments)
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
    show_plan(plan, wanted, shown_states, timer, _workers(arguments))
    show_versions(wanted, left)
    check_versions(arguments.code_version, cells)
    if arguments.dry_run:
        return
    write_plan(plan, cells)
    job = executors.Job(
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
        say(
            f"Cells that run elsewhere:\n{escape(running)}\nWho ends last writes the tables; [bold]varlora report "
            f"{where}[/bold] shows what is there until then."
        )
    else:
        print_study(finish(plan, cells), out)
        out.print(f"The tables are in [bold]{where}/{TABLES}[/bold]; open [bold]{where}/{PAGE}[/bold] in a browser.")
    _show_frozen_layers(wanted)
    _report_failures(outcomes)
    if arguments.executor != "inline":
        logs = "Ray's logs" if arguments.executor == "ray" else f"The logs in {plan.output_dir / 'jobs'}"
        _report_lost(logs, [cell for cell in left if cell.state() != "done" and cell.title not in elsewhere])


def _run(arguments: Namespace, job: executors.Job, left: Sequence[Cell], timer: Timer) -> tuple[Outcome, ...]:
    """Does what is left, in this process or in others, and shows how it goes."""
    workers = _workers(arguments)
    watch = Watch(timer=timer, at_once=workers or 1, waiting=list(left))
    with _progress(len(left), shown=not arguments.no_progress) as show:

        def started(cell: Cell) -> None:
            watch.started(cell)
            show(watch, None)

        if arguments.executor == "inline":
            return follow(job.take_cells(started), watch, show)
        if arguments.executor == "local":
            count = min(workers or 1, len(left))
            jobs = local_jobs.local_jobs(
                replace(job, threads=None if job.launcher else local_jobs.threads_of_each(count)), count
            )
        else:
            jobs = executors.ray_jobs(replace(job, threads=1), workers)
        with jobs as running:
            return follow(poll_cells(left, failures=job.failures, running=running, started=started), watch, show)


def _submit(plan: Plan, job: executors.Job, arguments: Namespace) -> None:
    """Puts jobs into Slurm's queue, and says how to follow them."""
    if not job.cells:
        out.print("Nothing is left to run.")
        return
    count = min(arguments.workers, len(job.cells))
    number = executors.submit_to_slurm(replace(job, alone=True), count, _slurm_options(arguments.slurm))
    where = escape(str(plan.output_dir))
    say(
        f"Slurm job {number} has {count} workers for {len(job.cells)} cells. Their logs are in "
        f"[bold]{where}/{executors.JOBS}[/bold], and the last to end writes [bold]{where}/{TABLES}[/bold]. `varlora "
        f"report {where}` shows what is there, the same command with --dry_run what runs."
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
        executors.check_slurm_options(slurm_options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "varlora compare was started as several processes that train together. Start one, which starts them for "
            "each cell: --launcher 'accelerate launch --num_processes N'."
        )
    if arguments.launcher is not None:
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
            say(
                f"States of frozen layers, which cells share, take {size / MEBIBYTE:.0f} MiB in "
                f"[bold]{escape(folder)}[/bold], which may be deleted whenever nothing runs."
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


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Show]:
    """Shows a bar with the time left, and a line for each cell that has ended."""
    columns = (BarColumn(), MofNCompleteColumn(), _TimeLeft(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task("", total=total, watch=None)

        def show(watch: Watch, outcome: Outcome | None) -> None:
            left = _time_left(watch)
            running = "; ".join(cell.title for cell, _ in watch.running.values())
            bar.update(task, completed=len(watch.outcomes), watch=watch, description=escape(running))
            if outcome is not None:
                number, failed = len(watch.outcomes), f", failed: {outcome.error}" if outcome.error is not None else ""
                took = "ended elsewhere" if outcome.elsewhere else duration(outcome.seconds)
                still = f"; {left}" if left and number < total else ""
                logger.info("%d/%d %s: %s%s%s", number, total, outcome.cell.title, took, failed, still)

        yield show


class _TimeLeft(ProgressColumn):
    """The time left, worked out anew whenever it is shown."""

    def render(self, task: Task) -> Text:
        """As of now."""
        return Text(_time_left(task.fields["watch"]))


def _time_left(watch: Watch | None) -> str:
    seconds = watch.seconds_left() if watch is not None else None
    return "" if seconds is None else f"about {duration(seconds)} left"


class _EachOnce:
    """Lets each warning through once, though every cell gives it."""

    def __init__(self) -> None:
        self._seen = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        shown = record.levelno != logging.WARNING or text not in self._seen
        self._seen.add(text)
        return shown


@contextmanager
def _quiet() -> Iterator[None]:
    """A line for each cell is enough: notes of the runs themselves are in the report. Warnings, once each, and --debug
    stay."""
    library, once = logging.getLogger("varlora"), [(handler, _EachOnce()) for handler in logging.getLogger().handlers]
    before = library.level
    if before == logging.INFO:
        library.setLevel(logging.WARNING)
        logger.setLevel(logging.INFO)
        for handler, repeated in once:
            handler.addFilter(repeated)
    try:
        yield
    finally:
        for handler, repeated in once:
            handler.removeFilter(repeated)
        library.setLevel(before)
        logger.setLevel(logging.NOTSET)
