"""`varlora methods`: the ways to train."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from rich.table import Table

from varlora.cli.console import out
from varlora.cli.parsing import CommandParser
from varlora.methods import METHODS


def parser() -> CommandParser:
    """No options."""
    return CommandParser(
        "methods",
        about="List the ways to train, with their options and defaults.",
        examples="  varlora train --method ivon --ess 1e6 ...",
    )


def execute(arguments: Namespace) -> None:
    """Prints the table."""
    table = Table("--method", "What it gives", "Options and their defaults", show_lines=True)
    for name, method in METHODS.items():
        options = [
            f"--{field.name} {'automatic' if field.default is None else field.default}"
            for field in dataclasses.fields(method)  # type: ignore[arg-type]
        ]
        table.add_row(f"[cyan]{name}[/cyan]", getattr(method, "summary", ""), "\n".join(options))
    out.print(table)
