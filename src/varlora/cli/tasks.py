"""`varlora tasks`: the named tasks, and the shapes of one's own."""

from __future__ import annotations

from argparse import Namespace

from rich.table import Table

from varlora.cli.console import out
from varlora.cli.parsing import CommandParser
from varlora.tasks import TASKS
from varlora.tasks.named import Benchmark
from varlora.tasks.rows import SHAPES


def parser() -> CommandParser:
    """No options."""
    return CommandParser(
        "tasks",
        about="List the named tasks, and the shapes of rows that can be trained on.",
        examples="  varlora train --task arc_easy ...\n  varlora train --task sst2 --task_dir data/sst2 ...",
    )


def execute(arguments: Namespace) -> None:
    """Prints the tables."""
    table = Table("--task", "On the hub", "Splits", "Source and licence", show_lines=True)
    for name, task in TASKS.items():
        if isinstance(task, Benchmark):
            hub = task.dataset + (f"\n{task.config}" if task.config else "")
            splits = "\n".join(dict.fromkeys([*task.splits, *task.files]))
            table.add_row(f"[cyan]{name}[/cyan]", hub, splits, f"{task.source}\n[dim]{task.licence}[/dim]")
        else:
            table.add_row(f"[cyan]{name}[/cyan]")
    out.print(table)
    shapes = "\n".join(f"  {' / '.join(fields)}" for fields in SHAPES.values())
    out.print(f"\nYour own rows (--train_file, JSONL) have the columns of one of:\n{shapes}", highlight=False)
