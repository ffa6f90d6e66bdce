"""What a narrow terminal shows of a table: everything, in parts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from varlora.report import Comparison, Table, differences_table, results_table
from varlora.report.tables import Cell


def shown(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table.to_rich())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_name_and_no_number_is_cut(comparison: Comparison, width: int) -> None:
    for table in (
        differences_table(comparison),
        results_table(comparison, metrics=comparison.metrics, times=True),
    ):
        lines = shown(table, width)
        text = "\n".join(lines)
        assert "…" not in text
        for name, cells in table.rows:
            assert all(word in text for word in name.split())
            assert all(line in text for cell in cells for line in cell.texts)
        for heading in table.headings[1:]:
            assert text.count(heading) == 1
        assert " ".join(table.caption.split()) in " ".join(text.split())


def test_every_part_has_the_rows_names_and_the_last_the_caption() -> None:
    rows = tuple((name, tuple(Cell(lines=((f"{name}{i}",),)) for i in range(5))) for name in ("one", "two"))
    table = Table(caption="the caption", headings=("Name", *(f"column {i}" for i in range(5))), rows=rows)
    assert [line.strip() for line in shown(table, 32) if line.strip()] == [
        "Name  column 0  column 1",
        "─" * 24,
        "one       one0      one1",
        "two       two0      two1",
        "Name  column 2  column 3",
        "─" * 24,
        "one       one2      one3",
        "two       two2      two3",
        "Name  column 4",
        "─" * 14,
        "one       one4",
        "two       two4",
        "the caption",
    ]
    wide = [line.strip() for line in shown(table, 80)]
    assert sum(line.startswith("Name") for line in wide) == 1


def test_a_name_without_spaces_is_broken_and_not_cut() -> None:
    name = "a/very/long/path/to/some/run/folder/somewhere"
    table = Table(caption="", headings=("Run", "value"), rows=((name, (Cell(lines=(("1.0",),)),)),))
    text = "".join(line.strip().removesuffix("1.0").strip() for line in shown(table, 40))
    assert name in text


def test_a_table_of_names_alone() -> None:
    assert "one" in "".join(shown(Table(caption="", headings=("Name",), rows=(("one", ()),)), 40))
