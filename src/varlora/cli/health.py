"""`varlora health`: whether sampling helps in a run, and how its posterior does."""

from __future__ import annotations

from argparse import Namespace

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from varlora.cli.console import out, say
from varlora.report import Health
from varlora.report.health_text import remarks, scale_table, sentence, statements
from varlora.runs.any_posterior import read_health
from varlora.runs.folder import is_run


def execute(arguments: Namespace) -> None:
    """Shows it."""
    source: str = arguments.source
    health = read_health(source)
    rows = statements(health)
    if rows:
        table = Table.grid(padding=(0, 2, 0, 0))
        for column in range(3):
            table.add_column(no_wrap=column < 2, style=("", "bold", "dim")[column])
        for row in rows:
            table.add_row(*map(Text, row))
        out.print(table, highlight=False)
    if (scales := scale_table(health)) is not None:
        out.print(scales.to_rich())
    say_verdict(health, source)
    if health.unknown and not is_run(source):
        say(_prose(f"`varlora tune {source} --validation_file FILE` chooses on labelled rows of a file."))


def say_verdict(health: Health, source: str) -> None:
    """Whether to sample, and what else follows from the numbers: what there is to decide."""
    say(f"[bold]{_prose(sentence(health))}[/bold]")
    for remark in remarks(health, source):
        say(_prose(remark))


def _prose(text: str) -> str:
    """Text in which code stands between backticks, in rich's markup."""
    parts = text.split("`")
    return "".join(f"[cyan]{escape(part)}[/cyan]" if i % 2 else escape(part) for i, part in enumerate(parts))
