"""A run's metrics as tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from varlora.metrics import Interval
from varlora.posterior import Posterior
from varlora.prediction import modes_of
from varlora.report.health_text import mode_in_words
from varlora.report.vocabulary import COMPLETIONS as COMPLETIONS_IN_WORDS
from varlora.report.vocabulary import FULL, METRICS, Measure

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]
Intervals = Mapping[str, Mapping[str, Mapping[str, Interval]]]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric in a table."""

    metric: str
    heading: str
    percent: bool = False
    digits: int = 3

    def show(self, value: float | None) -> str:
        """The number; null in a run folder stands for one that is not finite."""
        if value is None:
            return "–"
        return Measure(name="", title="", better="higher", percent=self.percent, digits=self.digits, meaning="").show(
            value
        )


def _of_report(metric: str) -> Column:
    how = METRICS[metric] if metric in METRICS else COMPLETIONS_IN_WORDS[metric]
    return Column(metric=metric, heading=how.heading, percent=how.percent, digits=how.digits)


CLASSES = tuple(_of_report(metric) for metric in FULL)
COMPLETIONS = (
    _of_report("nll_per_token"),
    Column(metric="nll_per_row", heading="NLL per row ↓"),
    Column(metric="perplexity", heading="Perplexity ↓", digits=2),
)
FINAL_ANSWERS = (
    *(_of_report(metric) for metric in ("exact_match", "exact_match_per_draw")),
    Column(metric="agreement", heading="Agreement %", percent=True, digits=1),
    _of_report("agreement_ece_10"),
    Column(metric="agreement_auroc", heading="AUROC, agreement ↑"),
    Column(metric="likelihood_auroc", heading="AUROC, likelihood ↑"),
    Column(metric="finished", heading="Finished %", percent=True, digits=1),
)
OUT_OF_SCOPE = (
    Column(metric="auroc_entropy", heading="AUROC, entropy ↑"),
    Column(metric="fpr95_entropy", heading="FPR95 ↓"),
    Column(metric="auroc_mutual_information", heading="AUROC, mutual inf. ↑"),
    Column(metric="fpr95_mutual_information", heading="FPR95 ↓"),
)


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
    for columns in (CLASSES, COMPLETIONS, FINAL_ANSWERS, OUT_OF_SCOPE):
        rows = [
            (split, mode, values)
            for split, modes in metrics.items()
            for mode, values in modes.items()
            if columns[0].metric in values
        ]
        if rows:
            named = modes_in_words if columns in (CLASSES, OUT_OF_SCOPE) else {}  # the rest has no logits of classes
            tables.append(_table(columns, rows, intervals or {}, named))
    return tables


def _table(
    columns: Sequence[Column],
    rows: Sequence[tuple[str, str, Mapping[str, Any]]],
    intervals: Intervals,
    named: Mapping[str, str],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Split")
    table.add_column("")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for number, (split, mode, values) in enumerate(rows):
        first = number == 0 or rows[number - 1][0] != split
        last = number + 1 == len(rows) or rows[number + 1][0] != split
        within = intervals.get(split, {}).get(mode, {})
        cells = [_cell(column, values, within) for column in columns]
        table.add_row(split if first else "", named.get(mode, mode), *cells, end_section=last and bool(intervals))
    return table


def _cell(column: Column, values: Mapping[str, Any], intervals: Mapping[str, Interval]) -> str:
    if column.metric not in values:
        return ""
    text = column.show(values[column.metric])
    if (interval := intervals.get(column.metric)) is not None:
        text += f"\n[dim]{column.show(interval.low)} – {column.show(interval.high)}[/dim]"
    return text
