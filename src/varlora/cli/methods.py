"""`varlora methods`: the ways to train."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from varlora.cli.console import grid, out, say
from varlora.methods import METHODS, Costs, MethodOptions, options_of, summary_of
from varlora.registry.option_fields import allowed, types_of


def execute(arguments: Namespace) -> None:
    """Prints the table, or one method."""
    if arguments.name is not None:
        _show(arguments.name)
        return
    table = Table("--method", "What it gives", "Options and their defaults", show_lines=True)
    for name in METHODS:
        options = [f"--{field.name} {_default(field)}" for field in dataclasses.fields(options_of(name))]
        table.add_row(f"[cyan]{name}[/cyan]", escape(summary_of(name)), escape("\n".join(options)))
    out.print(table)


def _show(name: str) -> None:
    kind = options_of(name)
    say(f"[bold cyan]{name}[/bold cyan]  {escape(summary_of(name))}.\n")
    if issubclass(kind, MethodOptions):
        facts = grid()
        for fact, words in _facts(kind().costs()).items():
            facts.add_row(f"[dim]{fact}[/dim]", escape(words))
        out.print(facts)
    table = Table(Column("Option", no_wrap=True), "Default", "Allowed", "What it does")
    for field in dataclasses.fields(kind):
        words = allowed(field, types_of(kind)[field.name])
        table.add_row(f"[cyan]--{field.name}[/cyan]", _default(field), escape(words), escape(_help(field)))
    if table.rows:
        out.print(table)


def _facts(costs: Costs) -> dict[str, str]:
    """What a method costs with its defaults, in words."""
    facts = {
        "Passes to train": f"{costs.passes:g} forward and backward",
        "Optimizer": f"{costs.states:g} numbers for each trained weight",
        "Stored": f"{costs.adapters:g} times the adapter" if costs.adapters is not None else "by the matrices' shapes",
        "Passes to predict": costs.predict,
    }
    return facts | ({"Besides": costs.besides} if costs.besides else {})


def _default(field: dataclasses.Field[Any]) -> str:
    return "automatic" if field.default is None else str(field.default)


def _help(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("help", ""))
