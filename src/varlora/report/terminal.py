"""A table on a terminal: in parts where its columns do not fit side by side, so that no name and no number is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from varlora.report.tables import Cell, Table

UNBOUNDED = 10**6
"""A width at which a table is as wide as it needs to be."""


class Fitted:
    """A table in as few parts as the terminal is wide for, each with the rows' names.

    Names wrap between words, and within a word that is too long. Only where a single column is wider than the terminal
    is anything lost.

    Args:
        table: to be shown.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, one below the other, and the caption."""
        left, caption = list(range(len(self.table.headings) - 1)), Text(self.table.caption)
        unbounded = options.update(max_width=UNBOUNDED)
        if not left or self._width(left, console, unbounded) <= options.max_width:
            yield self._part(left, caption)
            return
        while left:
            count = len(left)
            while count > 1 and self._width(left[:count], console, unbounded) > options.max_width:
                count -= 1
            yield self._part(left[:count])
            left = left[count:]
        yield Text(caption.plain, style="table.caption")

    def _width(self, columns: Sequence[int], console: Console, options: ConsoleOptions) -> int:
        """The least width at which nothing is cut."""
        return console.measure(self._part(columns), options=options).minimum

    def _part(self, columns: Sequence[int], caption: Text | None = None) -> RichTable:
        table = self.table
        part = RichTable(
            box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
        )
        part.add_column(Text(table.headings[0]), overflow="fold")
        for column in columns:
            heading = table.headings[column + 1]
            lines = [line for _, cells in table.rows for line in cells[column].texts]
            part.add_column(
                Text(heading), justify="right", no_wrap=True, min_width=max(map(cell_len, (heading, *lines)))
            )
        tall = any(len(cells[column].lines) > 1 for _, cells in table.rows for column in columns)
        for number, (name, cells) in enumerate(table.rows):
            last = number == len(table.rows) - 1
            shown = [_rich_cell(cells[column]) for column in columns]
            part.add_row(Text(name), *shown, end_section=tall and not last)
        return part


def _rich_cell(cell: Cell) -> Text:
    if not cell.lines:
        return Text("–")
    lines = [Text(text, style=_rich_style(cell, line)) for line, text in enumerate(cell.texts)]
    return Text("\n", justify="right").join(lines)


def _rich_style(cell: Cell, line: int) -> str:
    if line == cell.verdict_line and cell.verdict in ("better", "worse"):
        return {"better": "green", "worse": "red"}[cell.verdict]
    if line:
        return "dim"
    return "bold" if cell.strong else ""
