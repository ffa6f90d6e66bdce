"""A run's metrics as tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from varlora.cli.console import numbers_table
from varlora.metrics import Interval, Metric, metric_named, shown_metrics
from varlora.metrics.metric import Kind
from varlora.posterior import Posterior
from varlora.prediction.prediction_setup import modes_of
from varlora.report.health_text import mode_in_words

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]
Intervals = Mapping[str, Mapping[str, Mapping[str, Interval]]]
KINDS: tuple[Kind, ...] = ("classes", "completions", "final_answers", "out_of_scope")
DIVIDED = ("classes", "out_of_scope")
"""Kinds of rows whose predictions have logits of classes, which a temperature may have divided."""


def temperatures_of(q: Posterior) -> dict[str, float]:
    """What divides the logits of each mode's predictions."""
    return {mode: q.meta.logit_temperature_of(mode) for mode in modes_of(q)}


def metrics_tables(
    metrics: Metrics, intervals: Intervals | None = None, temperatures: Mapping[str, float] | None = None
) -> list[Table]:
    """One table for each kind of metric: of classes, completions, final answers, and telling rows out of scope.

    Args:
        metrics: `{split: {mode: {metric: value}}}`, as in metrics.json.
        intervals: the bootstrap intervals of some of them.
        temperatures: by mode, what has divided the logits; told beside the mode where it is not 1.
    """
    modes_in_words = {mode: mode_in_words(mode, temperature) for mode, temperature in (temperatures or {}).items()}
    tables = []
    for kind in KINDS:
        columns = [metric_named(name) for name in shown_metrics(kind, where="terminal")]
        rows = [
            (split, mode, values)
            for split, modes in metrics.items()
            for mode, values in modes.items()
            if any(column.name in values for column in columns)
        ]
        if rows:
            tables.append(_table(columns, rows, intervals or {}, modes_in_words if kind in DIVIDED else {}))
    return tables


def _table(
    columns: Sequence[Metric],
    rows: Sequence[tuple[str, str, Mapping[str, Any]]],
    intervals: Intervals,
    named: Mapping[str, str],
) -> Table:
    headings = (column.heading.replace(", ", ",\n") for column in columns)
    table = numbers_table("Split", Column(""), *headings, gap=1)
    for number, (split, mode, values) in enumerate(rows):
        first = number == 0 or rows[number - 1][0] != split
        last = number + 1 == len(rows) or rows[number + 1][0] != split
        within = intervals.get(split, {}).get(mode, {})
        cells = [_cell(column, values, within) for column in columns]
        table.add_row(split if first else "", named.get(mode, mode), *cells, end_section=last and bool(intervals))
    return table


def _cell(how: Metric, values: Mapping[str, Any], intervals: Mapping[str, Interval]) -> str:
    if how.name not in values:
        return ""
    text = how.show(values[how.name])
    if (interval := intervals.get(how.name)) is not None:
        text += f"\n[dim]{how.show(interval.low)} – {how.show(interval.high)}[/dim]"
    return text
