"""Differences between methods over seeds, how often one is clear over tasks, and the means along a frontier.

Verdicts (`varlora.report.seeds`) are counted over blocks (one model on one task each); nothing is averaged over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from varlora.metrics import metric_named, shown_metrics
from varlora.report.estimates import Difference
from varlora.report.seeds import OverSeeds, over_seeds
from varlora.report.study import Frontier, Study
from varlora.report.vocabulary import Verdict


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One method against the reference on one block, by one metric.

    Attributes:
        model, task: the block.
        difference: the paired difference over the examples, with each seed's.
        verdict: what examples and seeds show together.
    """

    model: str
    task: str
    difference: Difference
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How often a method was better and worse than the reference.

    Attributes:
        method: which method.
        metric: which metric.
        judged: the blocks that both are in, in the study's order.
    """

    method: str
    metric: str
    judged: tuple[Judged, ...]

    def count(self, verdict: Verdict) -> int:
        """How many blocks had a verdict."""
        return sum(one.verdict == verdict for one in self.judged)

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many blocks had each verdict; one that none had is left out, or, where some have seeds, told as 0."""
        always: tuple[Verdict, ...] = ("better", "unclear", "worse")
        if self.count("one seed") + self.count("equal") == len(self.judged):
            always = ()
        order: tuple[Verdict, ...] = ("better", "unclear", "equal", "worse", "one seed")
        return {verdict: self.count(verdict) for verdict in order if verdict in always or self.count(verdict)}

    @property
    def in_words(self) -> str:
        """E.g. "3 better, 2 unclear, 1 worse"."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())


def tallies(study: Study, *, split: str = "test", metrics: Sequence[str] | None = None) -> tuple[Tally, ...]:
    """Every method against the study's reference, over the blocks that both are in.

    Args:
        study: what was found.
        split: blocks without it are left out.
        metrics: which metrics; by default those of each comparison.

    Returns:
        Tallies by method and metric, in the order of the study's methods; none for a method that no block compares with
        the reference.

    Raises:
        ValueError: a metric is unknown.

    Example:
        >>> tallies(Study(name="empty", reference="AdamW", blocks=()))
        ()
    """
    judged: dict[tuple[str, str], list[Judged]] = {}
    for block, comparison in study.compared(split):
        if (reference := comparison.reference) is None:
            continue
        for method in comparison.methods:
            for metric in (metrics or comparison.metrics) if method != reference else ():
                difference = comparison.difference(method, reference, metric=metric, split=split)
                verdict = difference.verdict(metric_named(metric))
                judged.setdefault((method, metric), []).append(
                    Judged(model=block.model, task=block.task, difference=difference, verdict=verdict)
                )
    return tuple(Tally(method=method, metric=metric, judged=tuple(all_)) for (method, metric), all_ in judged.items())


@dataclass(frozen=True, kw_only=True)
class FrontierMean:
    """One place of a frontier, over seeds.

    Attributes:
        label: the curve's or the row's.
        value: the setting; None for a row's point beside the curves.
        metrics: over the seeds.
    """

    label: str
    value: float | None
    metrics: Mapping[str, OverSeeds]


def frontier_means(frontier: Frontier, *, metrics: Sequence[str] | None = None) -> tuple[FrontierMean, ...]:
    """Every setting of a frontier's curves, then the points beside them: mean and standard error over seeds.

    Args:
        frontier: the points of every seed.
        metrics: which metrics; by default those that are shown everywhere. One that a point lacks is NaN.

    Returns:
        Label by label in the order of their first points, each by rising value.

    Example:
        >>> from varlora.report.study import FrontierPoint
        >>> points = [FrontierPoint(label="IVON", seed=s, value=0.5, metrics={"nll": 0.5 + 0.1 * s}) for s in (0, 1)]
        >>> (place,) = frontier_means(Frontier(over="temperature", split="test", points=points), metrics=["nll"])
        >>> place.value, round(place.metrics["nll"].mean, 3), round(place.metrics["nll"].se, 3)
        (0.5, 0.55, 0.05)
    """
    places: dict[str, dict[float | None, list[Mapping[str, float]]]] = {}
    for point in frontier.points:
        places.setdefault(point.label, {}).setdefault(point.value, []).append(point.metrics)
    return tuple(
        FrontierMean(
            label=label,
            value=value,
            metrics={
                metric: over_seeds([seed.get(metric, math.nan) for seed in settings[value]])
                for metric in metrics or shown_metrics()
            },
        )
        for beside in (False, True)
        for label, settings in places.items()
        for value in sorted(settings, key=lambda v: -math.inf if v is None else v)
        if (value is None) == beside
    )
