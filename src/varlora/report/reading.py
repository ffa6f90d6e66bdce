"""The result in one plain sentence, from the numbers: who is best in what, and whether that is clear."""

from __future__ import annotations

import math
from collections.abc import Sequence

from varlora.io.words import counted, listing
from varlora.metrics import HEADLINE, metric_named
from varlora.report.results import Comparison


def reading(comparison: Comparison, *, split: str = "test", metrics: Sequence[str] = HEADLINE) -> str:
    """What a careful reader would say after the table.

    A method is called clearly ahead of another only if its paired difference is (`Difference.verdict`); from one seed
    none is.

    Args:
        comparison: What was run.
        split: Which of its splits.
        metrics: The metrics that the sentence speaks of.
    """
    outcomes: dict[tuple[str | None, tuple[str, ...]], list[str]] = {}
    for metric in metrics:
        outcomes.setdefault(_outcome(comparison, split, metric), []).append(metric)
    clauses = [_clause(comparison, split, winner, level_with, won) for (winner, level_with), won in outcomes.items()]
    examples, seeds = counted(comparison.num_examples(split), "example"), counted(len(comparison.seeds(split)), "seed")
    return f"On the {split} split ({examples}, {seeds}), {'; '.join(clauses)}."


def _outcome(comparison: Comparison, split: str, metric: str) -> tuple[str | None, tuple[str, ...]]:
    """The method with the best mean, and those that it is not clearly ahead of; no method if none has a number."""
    how = metric_named(metric)
    means = {name: summary.metrics[metric].mean for name, summary in comparison.summary(split).items()}
    known = [name for name, mean in means.items() if not math.isnan(mean)]
    if not known:
        return None, ()
    winner = (max if how.better == "higher" else min)(known, key=means.__getitem__)
    level_with = tuple(
        name
        for name in comparison.methods
        if name != winner and comparison.difference(winner, name, metric=metric, split=split).verdict(how) != "better"
    )
    return winner, level_with


def _clause(
    comparison: Comparison, split: str, winner: str | None, level_with: tuple[str, ...], metrics: list[str]
) -> str:
    if winner is None:
        return f"{listing([metric_named(metric).label for metric in metrics])} cannot be computed"
    estimates = comparison.summary(split)[winner].metrics
    values = listing([_with_value(metric, estimates[metric].mean) for metric in metrics])
    others = len(comparison.methods) - 1
    if not others:
        return f"{_quoted(winner)} reaches {values}"
    best = f"{_quoted(winner)} has the best {values}"
    if len(comparison.seeds(split)) == 1:
        return f"{best} in this one seed, which does not tell how another would end"
    if not level_with:
        return f"{best}, clearly ahead of {'every other method' if others > 1 else _quoted(_other(comparison, winner))}"
    if len(level_with) == others > 1:
        return f"{best}, though not clearly better than any other method"
    return f"{best}, though not clearly better than {listing([_quoted(name) for name in level_with])}"


def _with_value(metric: str, value: float) -> str:
    how = metric_named(metric)
    return f"{how.label} ({how.show(value)}{' %' if how.percent else ''})"


def _other(comparison: Comparison, method: str) -> str:
    return next(name for name in comparison.methods if name != method)


def _quoted(method: str) -> str:
    return f"“{method}”"
