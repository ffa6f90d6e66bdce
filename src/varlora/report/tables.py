"""The comparison as tables: defined once, rendered for a terminal, Markdown, LaTeX and (by the templates) HTML.

Every number that is shown carries its exact value, so that a rendering can hand it on unrounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from varlora.metrics import Metric, metric_named
from varlora.report.estimates import Difference, Estimate, Summary
from varlora.report.latex import escape_latex
from varlora.report.markdown import escape_markdown
from varlora.report.results import Comparison
from varlora.report.terminal import Fitted
from varlora.report.vocabulary import Verdict


class Number(NamedTuple):
    """A number as shown, and exactly."""

    text: str
    value: float

    def __str__(self) -> str:
        return self.text


CLEAR = (
    "Better, worse: the interval over the examples and the t-interval over the seeds both leave out 0. Equal: 0 "
    "always, or clear, and 0 to the digits shown. One seed: no other tells the luck of training."
)
"""What a verdict rests on, under every table that has some."""

Line: TypeAlias = tuple["str | Number", ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in one place of a table.

    Args:
        lines: The first is the statement, the others its detail. No lines: there is nothing to say.
        strong: The best of its column.
        verdict: What a difference shows (`varlora.report.seeds`); empty where nothing is compared.
        metric: The metric that the numbers belong to.
        verdict_line: Which of the lines states what the verdict is on.
    """

    lines: tuple[Line, ...] = ()
    strong: bool = False
    verdict: Verdict | Literal[""] = ""
    metric: str = ""
    verdict_line: int = 0

    def stands_out(self, line: int) -> bool:
        """Whether a line is to be seen before others: the best of a column, or a clear difference."""
        return (self.strong and line == 0) or (self.verdict in ("better", "worse") and line == self.verdict_line)

    @property
    def texts(self) -> tuple[str, ...]:
        """The lines as plain text."""
        return tuple("".join(str(part) for part in line) for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under headings; the first column holds the methods' names.

    Example:
        >>> cells = (Cell(lines=((Number("71.4", 0.714),),), strong=True),)
        >>> table = Table(caption="test", headings=("Method", "Accuracy %"), rows=(("IVON", cells),))
        >>> print(table.to_markdown())
        | Method | Accuracy % |
        |:--|--:|
        | IVON | **71.4** |
        <BLANKLINE>
        test
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def to_markdown(self) -> str:
        """A GitHub-flavoured Markdown table, one line a row, its caption below it."""
        lines = [
            _markdown_row(self.headings),
            f"|:--|{'--:|' * (len(self.headings) - 1)}",
            *(_markdown_row((name, *map(_markdown_cell, cells)), raw=True) for name, cells in self.rows),
        ]
        return "\n".join([*lines, "", escape_markdown(self.caption)])

    def to_latex(self) -> str:
        r"""A floating table for a paper: booktabs rules, what stands out in bold, details in small rows below.

        The document needs `\usepackage{booktabs}`.

        Example:
            >>> cells = (Cell(lines=((Number("71.4", 0.714),), ("a_b",)), strong=True),)
            >>> print(Table(caption="test", headings=("Method", "%"), rows=(("IVON", cells),)).to_latex())
            \begin{table}[t]
            \centering
            \caption{test}
            \begin{tabular}{@{}lr@{}}
            \toprule
            Method & \% \\
            \midrule
            IVON & \textbf{71.4} \\
             & {\scriptsize a\_b} \\
            \bottomrule
            \end{tabular}
            \end{table}
        """
        body = [line for name, cells in self.rows for line in _latex_rows(name, cells)]
        return "\n".join(
            [
                r"\begin{table}[t]",
                r"\centering",
                rf"\caption{{{escape_latex(self.caption)}}}",
                rf"\begin{{tabular}}{{@{{}}l{'r' * (len(self.headings) - 1)}@{{}}}}",
                r"\toprule",
                _latex_row(map(escape_latex, self.headings)),
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def to_rich(self) -> Fitted:
        """The table for a terminal; in parts where its columns do not fit side by side."""
        return Fitted(self)


def results_table(
    comparison: Comparison, *, split: str = "test", metrics: Sequence[str] | None = None, times: bool = False
) -> Table:
    """Each method's metrics: mean ± standard error over seeds, and the 95 % bootstrap interval.

    Args:
        comparison: What was run.
        split: Which of its splits.
        metrics: Which of the comparison's metrics, in order; all of them by default.
        times: Whether a last column tells the seconds of training and prediction.
    """
    summaries, metrics = comparison.summary(split), metrics or comparison.metrics
    shown = [metric_named(metric) for metric in metrics]
    best = {metric: _best(comparison, split, metric) for metric in metrics}
    rows = []
    for name, summary in summaries.items():
        cells = [_estimate_cell(summary.metrics[how.name], how, strong=name in best[how.name]) for how in shown]
        if times:
            cells.append(_times_cell(summary))
        rows.append((name, tuple(cells)))
    headings = ("Method", *(how.heading for how in shown), *(("Time s",) if times else ()))
    caption = (
        f"{comparison.describe(split)}. Mean ± standard error over seeds, and the 95 % bootstrap interval over "
        "examples. The best mean of a column stands out, whether or not its lead is clear."
    )
    if any(how.inflated for how in shown):
        caption += " Resampling can only add to a calibration error: its interval lies high."
    if divided := comparison.logit_temperatures(split):
        ranges = (
            f"{name} {low:.2f}{'' if low == high else f' to {high:.2f}'}" for name, (low, high) in divided.items()
        )
        caption += f" T, by which logits were divided: {', '.join(ranges)}; 1 for the others."
    return Table(caption=caption, headings=headings, rows=tuple(rows))


def differences_table(comparison: Comparison, *, split: str = "test", metrics: Sequence[str] | None = None) -> Table:
    """Each method's difference from the reference method: its verdict, and both intervals that it rests on.

    Raises:
        ValueError: The comparison has no reference method.
    """
    if comparison.reference is None:
        raise ValueError("there is no reference method to differ from; give Comparison(reference=...)")
    metrics = metrics or comparison.metrics
    shown = [metric_named(metric) for metric in metrics]
    rows = tuple(
        (name, tuple(_difference_cell(summary.differences[how.name], how) for how in shown))
        for name, summary in comparison.summary(split).items()
        if name != comparison.reference
    )
    caption = (
        f"{comparison.describe(split)}. Difference from {comparison.reference}, paired by example and by seed, ± its "
        "standard error over seeds. Below, its 95 % intervals: a bootstrap over the examples; Student's t over the "
        "seeds, which knows the luck of training, and none where all seeds' differences are equal, which tell nothing "
        f"of their spread. {CLEAR} Not corrected for the number of comparisons."
    )
    headings = (f"Against {comparison.reference}", *(how.heading for how in shown))
    return Table(caption=caption, headings=headings, rows=rows)


def _best(comparison: Comparison, split: str, metric: str) -> frozenset[str]:
    """The methods whose mean, as shown, no other's beats."""
    how = metric_named(metric)
    means = {name: summary.metrics[metric].mean for name, summary in comparison.summary(split).items()}
    known = [mean for mean in means.values() if not math.isnan(mean)]
    if not known:
        return frozenset()
    top = max(known) if how.better == "higher" else min(known)
    return frozenset(name for name, mean in means.items() if how.show(mean) == how.show(top))


def _estimate_cell(estimate: Estimate, how: Metric, *, strong: bool) -> Cell:
    lines = (
        spread_line(how.show, estimate.mean, estimate.se, how),
        interval_line(how.show, estimate.low, estimate.high),
    )
    return Cell(lines=lines, strong=strong, metric=how.name)


def _difference_cell(difference: Difference, how: Metric) -> Cell:
    """The verdict, and below it the intervals that it rests on."""
    verdict, seeds = difference.verdict(how), difference.over_seeds
    lines: list[Line] = [(*spread_line(how.show_difference, difference.value, seeds.se, how), f" {verdict}")]
    if verdict != "equal":
        lines.append((*interval_line(how.show_difference, difference.low, difference.high), " examples"))
        if seeds.low is not None and seeds.high is not None:
            lines.append((*interval_line(how.show_difference, seeds.low, seeds.high), " seeds"))
        elif seeds.seeds > 1:
            lines.append(("no interval, seeds",))
    return Cell(lines=tuple(lines), verdict=verdict, metric=how.name)


def spread_line(show: Callable[[float], str], mean: float, error: float | None, how: Metric) -> Line:
    """A mean and, of several seeds, its standard error."""
    spread: Line = () if error is None else (" ± ", Number(how.show(error), error))
    return (Number(show(mean), mean), *spread)


def interval_line(show: Callable[[float], str], low: float, high: float) -> Line:
    """The ends of an interval."""
    return (Number(show(low), low), " to ", Number(show(high), high))


def _times_cell(summary: Summary) -> Cell:
    times = {"train": summary.train_seconds, "predict": summary.predict_seconds}
    return Cell(lines=tuple((_seconds(time), f" {what}") for what, time in times.items() if time is not None))


def _seconds(seconds: float) -> Number:
    return Number(f"{seconds:.{0 if seconds >= 100 else 1}f}", seconds)


def _markdown_row(texts: Sequence[str], *, raw: bool = False) -> str:
    name, *others = texts
    return f"| {' | '.join([escape_markdown(name), *(others if raw else map(escape_markdown, others))])} |"


def _markdown_cell(cell: Cell) -> str:
    if not cell.lines:
        return "–"
    texts = map(escape_markdown, cell.texts)
    return "<br>".join(f"**{text}**" if cell.stands_out(line) else text for line, text in enumerate(texts))


def _latex_rows(name: str, cells: Sequence[Cell]) -> list[str]:
    """One row of statements and, below it, as many of details as the tallest cell has."""
    height = max(1, *(len(cell.lines) for cell in cells))
    names = [escape_latex(name), *[""] * (height - 1)]
    return [_latex_row([head, *(_latex_line(cell, line) for cell in cells)]) for line, head in enumerate(names)]


def _latex_line(cell: Cell, line: int) -> str:
    if line >= len(cell.lines):
        return "" if line else "--"
    text = escape_latex(cell.texts[line])
    text = rf"\textbf{{{text}}}" if cell.stands_out(line) else text
    return rf"{{\scriptsize {text}}}" if line else text


def _latex_row(texts: Iterable[str]) -> str:
    return rf"{' & '.join(texts)} \\"
