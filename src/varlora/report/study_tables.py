"""A study as tables: one block (a model on a task) after the other, and each metric over all tasks side by side.

The tables are made once, here, and shown by every rendering: terminal, Markdown, LaTeX, and the interactive page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from varlora.io.words import listing
from varlora.metrics import HEADLINE, Metric, metric_named, shown_metrics
from varlora.metrics.metric import Kind
from varlora.report.results import Comparison
from varlora.report.seeds import OverSeeds, over_seeds
from varlora.report.statistics import Tally, frontier_means, tallies
from varlora.report.study import Block, Cost, Frontier, Study
from varlora.report.tables import CLEAR, Cell, Number, Table, differences_table, results_table, spread_line

OVER = {
    "temperature": ("temperature τ", "τ"),
    "prune": ("fraction pruned", "pruned"),
    "samples": ("number of draws", "draws"),
}
"""What a frontier varies: in words, and in short."""


def study_splits(study: Study) -> tuple[str, ...]:
    """The splits of all blocks, those of foreign rows last, each once."""
    judged = [split for block in study.blocks if block.comparison for split in block.comparison.splits]
    others = [split for block in study.blocks for split in (*block.completions, *block.detection)]
    return tuple(dict.fromkeys([*judged, *others]))


def check_splits(study: Study, splits: Sequence[str] | None) -> None:
    """Whether a study has what is asked for.

    Raises:
        ValueError: No block has one of the splits.
    """
    there = study_splits(study)
    for split in splits or ():
        if split not in there:
            raise ValueError(f"there is no split {split!r} here; there are {', '.join(there) or 'none yet'}.")


def overview_table(study: Study, *, split: str, metric: str) -> Table:
    """One metric of every method on every task: mean ± standard error, and the paired difference below it.

    Args:
        study: What was found.
        split: Blocks without it have no column.
        metric: As of `varlora.metrics.evaluate`.
    """
    how = metric_named(metric)
    shown = study.compared(split)
    several_models = len({block.model for block, _ in shown}) > 1
    columns = [_overview_column(comparison, split, metric) for _, comparison in shown]
    methods = dict.fromkeys(method for column in columns for method in column)
    headings = [f"{block.task}, {block.model}" if several_models else block.task for block, _ in shown]
    caption = (
        f"{how.heading} on {split}, mean ± standard error over seeds. Below: the paired difference from "
        f"{study.reference} on the same examples, and whether it is clear. The best of a task stands out, whether or "
        "not its lead is clear."
    )
    divided = dict.fromkeys(method for _, comparison in shown for method in comparison.logit_temperatures(split))
    if divided:
        caption += f" A T divided logits of {listing(list(divided))}, as each task's results say, and of no other."
    return Table(
        caption=caption,
        headings=(how.heading, *headings),
        rows=tuple((method, tuple(column.get(method, Cell()) for column in columns)) for method in methods),
    )


def record_table(study: Study, *, split: str, metrics: Sequence[str] = HEADLINE) -> Table:
    """On how many tasks each method was better and worse than the reference."""
    by_row = {(tally.method, tally.metric): tally for tally in tallies(study, split=split, metrics=metrics)}
    rows = tuple(
        (method, tuple(_record_cell(by_row[method, metric], metric) for metric in metrics))
        for method in dict.fromkeys(method for method, _ in by_row)
    )
    return Table(
        caption=(
            f"On how many tasks each method was better and worse than {study.reference} on {split}. {CLEAR} Not "
            "corrected for the number of comparisons."
        ),
        headings=(f"Tasks, against {study.reference}", *(metric_named(metric).title for metric in metrics)),
        rows=rows,
    )


def detection_table(block: Block, split: str) -> Table:
    """How well each method tells the rows of `split`, which belong to no class, from the test rows."""
    caption = f"{split}: rows of no known class, told from the test rows. Mean ± standard error over seeds."
    return _seeds_values_table(block.detection[split], caption, "out_of_scope")


def completions_table(block: Block, split: str) -> Table:
    """What was measured of each method on the completions of `split`."""
    caption = f"{split}: completions. Mean ± standard error over seeds."
    return _seeds_values_table(block.completions[split], caption, "completions", "final_answers")


def frontier_table(frontier: Frontier) -> Table:
    """Accuracy and calibration at every setting of a curve, and of the methods beside it."""
    words, short = OVER[frontier.over]
    rows = [
        (
            place.label if place.value is None else f"{place.label}, {short} {place.value:g}",
            tuple(_spread_cell(place.metrics[metric], metric_named(metric)) for metric in HEADLINE),
        )
        for place in frontier_means(frontier, metrics=HEADLINE)
    ]
    return Table(
        caption=(
            f"Along the {words}, on {frontier.split}; mean ± standard error over seeds. At every setting a run's own T "
            "divides the logits, unless the curve names a logit temperature."
        ),
        headings=("Setting", *(metric_named(metric).heading for metric in HEADLINE)),
        rows=tuple(rows),
    )


def costs_table(costs: Sequence[Cost]) -> Table:
    """What each row cost: its training, its prediction, memory and disk; means over seeds."""
    rows = []
    for training in dict.fromkeys(cost.label for cost in costs):
        seeds = [cost for cost in costs if cost.label == training]
        labels = dict.fromkeys(label for cost in seeds for label in cost.predict_seconds) or {training: None}
        for label in labels:
            cells = (
                Cell(lines=((training,),)),
                _mean_cell([cost.train_seconds for cost in seeds]),
                _mean_cell([cost.predict_seconds.get(label) for cost in seeds]),
                _mean_cell([cost.peak_memory_bytes for cost in seeds], unit=1e6),
                _mean_cell([cost.file_bytes for cost in seeds], unit=1e6),
            )
            rows.append((label, cells))
    return Table(
        caption=(
            "Means over seeds. Rows of one training share its cost. Prediction: of the first test split. Not known: "
            "how long a training took that was resumed."
        ),
        headings=("Method", "Training", "Train s", "Predict s", "Peak memory MB", "On disk MB"),
        rows=tuple(rows),
    )


def _overview_column(comparison: Comparison, split: str, metric: str) -> dict[str, Cell]:
    """A column by method: the cells of the tables of that task, put together."""
    results = results_table(comparison, split=split, metrics=[metric])
    column = {method: replace(cell, lines=cell.lines[:1]) for method, (cell,) in results.rows}
    if not comparison.has_differences:
        return column
    for method, (cell,) in differences_table(comparison, split=split, metrics=[metric]).rows:
        lines = (*column[method].lines, cell.lines[0])
        column[method] = replace(column[method], lines=lines, verdict=cell.verdict, verdict_line=1)
    return column


def _spread_cell(spread: OverSeeds | None, how: Metric) -> Cell:
    if spread is None:
        return Cell(metric=how.name)
    return Cell(lines=(spread_line(how.show, spread.mean, spread.se, how),), metric=how.name)


def _seeds_values_table(methods: Mapping[str, Mapping[str, Sequence[float]]], caption: str, *kinds: Kind) -> Table:
    """A column for each of the kinds' metrics that some method has, from the values of the seeds."""
    there = [name for name in shown_metrics(*kinds) if any(name in values for values in methods.values())]
    shown = {name: metric_named(name) for name in there}
    rows = tuple(
        (
            method,
            tuple(
                _spread_cell(over_seeds(values[name]) if name in values else None, how) for name, how in shown.items()
            ),
        )
        for method, values in methods.items()
    )
    return Table(caption=caption, headings=("Method", *(how.heading for how in shown.values())), rows=rows)


def _record_cell(tally: Tally, metric: str) -> Cell:
    lines = tuple((Number(str(count), count), f" {verdict}") for verdict, count in tally.counts.items())
    return Cell(lines=lines, metric=metric)


def _mean_cell(values: Sequence[float | None], *, unit: float = 1.0) -> Cell:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return Cell()
    mean = sum(known) / len(known) / unit
    return Cell(lines=((Number(f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}", mean),),))
