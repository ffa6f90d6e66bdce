"""`varlora methods`: the ways to train."""

from __future__ import annotations

from argparse import Namespace

from rich.table import Table

from varlora.cli.console import out
from varlora.methods import LISTED


def execute(arguments: Namespace) -> None:
    """Prints the table."""
    table = Table("--method", "What it gives", "Options and their defaults", show_lines=True)
    for name, method in LISTED.items():
        options = [
            f"--{option} {'automatic' if default is None else default}" for option, default in method.options.items()
        ]
        table.add_row(f"[cyan]{name}[/cyan]", method.summary, "\n".join(options))
    out.print(table)
