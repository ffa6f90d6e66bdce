"""How sure a difference between methods is, over examples and over seeds, and how often it is one over tasks.

    over examples    a paired bootstrap of the test set: the luck of its rows (`varlora.report.Comparison`)
    over seeds       Student's t of the K seeds' values, or of their paired differences: the luck of training

                     mean ± t(K − 1; 97.5 %) · s / √K

Values that are all equal, as accuracies on few rows can be, tell nothing of their spread: there is no interval then.

A win or a loss on a block (one model on one task) is a difference that its interval tells from 0; what it does not tell
is a tie. Wins are counted over blocks, and nothing is averaged over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from varlora.report.results import LEVEL, Comparison, Difference
from varlora.report.study import Block, Frontier, Study
from varlora.report.vocabulary import FULL, Measure, measure

Outcome = Literal["win", "tie", "loss"]
OUTCOMES: Mapping[str, Outcome] = {"better": "win", "worse": "loss", "equal": "tie", "unclear": "tie"}
"""What a verdict of `Difference` counts as."""
ROUNDING = 1e-12
"""Values no further apart than this (of the largest of them, or of 1) are equal: sums of floats differ so much."""


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The mean of K seeds' values, or of their differences, with what the seeds' spread says of it.

    Attributes:
        mean: of the values.
        se: standard error of the mean; None for one seed.
        low: lower end of the mean's 95 % t-interval; None for one seed, and where all values are equal: they tell
            nothing of how far another seed's may lie from them.
        high: its upper end.
        seeds: K.
    """

    mean: float
    se: float | None
    low: float | None
    high: float | None
    seeds: int

    def outcome(self, how: Measure) -> Outcome | None:
        """Of a difference: a win or a loss where the interval leaves 0 out, else a tie; None for one seed.

        Example:
            >>> over_seeds([0.01, 0.02, 0.03]).outcome(measure("accuracy"))
            'tie'
            >>> over_seeds([0.018, 0.02, 0.022]).outcome(measure("nll"))
            'loss'
            >>> over_seeds([0.02, 0.02, 0.02]).outcome(measure("accuracy"))      # nothing is known of the spread
            'tie'
        """
        if self.seeds == 1:
            return None
        if self.low is None or self.high is None:
            return "tie"
        return _outcome(self.mean, self.low, self.high, how)


def over_seeds(values: Sequence[float], level: float = LEVEL) -> OverSeeds:
    """The mean of the seeds' values, its standard error, and its t-interval.

    Args:
        values: one of each seed.
        level: confidence of the interval.

    Raises:
        ValueError: there is no value, or the level is none.

    Example:
        >>> found = over_seeds([1.0, 2.0, 3.0])
        >>> found.mean, round(found.se, 4), round(found.high - found.mean, 4)
        (2.0, 0.5774, 2.4841)
    """
    if not values or not 0 < level < 1:
        raise ValueError(f"need one value or more and a level between 0 and 1; got {len(values)} values and {level!r}.")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return OverSeeds(mean=mean, se=None, low=None, high=None, seeds=1)
    if _all_equal(values):
        return OverSeeds(mean=mean, se=0.0, low=None, high=None, seeds=count)
    se = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * se
    return OverSeeds(mean=mean, se=se, low=mean - half, high=mean + half, seeds=count)


def difference_over_seeds(
    comparison: Comparison, method: str, other: str, *, metric: str, split: str = "test"
) -> OverSeeds:
    """Metric of one method minus that of another, paired by seed: the two had the same rows and initialisation.

    Raises:
        ValueError: the comparison lacks the split.
    """
    return over_seeds(comparison.difference(method, other, metric=metric, split=split).per_seed)


def detection_difference(block: Block, method: str, other: str, *, metric: str, split: str) -> OverSeeds | None:
    """How much better a method tells rows out of scope than another does, paired by seed.

    Args:
        block: where both are.
        method: which method.
        other: the one that it is compared with. Where that has no draws, and so no mutual information, it is judged by
            its entropy.
        metric: of `block.detection`, e.g. "auroc_entropy".
        split: the rows out of scope.

    Returns:
        Method minus other; None if one of them was not measured.

    Example:
        >>> of_methods = {"AdamW": {"auroc_entropy": [0.8, 0.9]}, "IVON": {"auroc_mutual_information": [0.9, 1.0]}}
        >>> block = Block(model="m", task="t", comparison=None, detection={"ood": of_methods})
        >>> found = detection_difference(block, "IVON", "AdamW", metric="auroc_mutual_information", split="ood")
        >>> round(found.mean, 3), found.seeds
        (0.1, 2)
    """
    measured = block.detection.get(split, {})
    ours, theirs = measured.get(method, {}).get(metric), measured.get(other, {}).get(metric)
    if theirs is None:
        theirs = measured.get(other, {}).get(metric.replace("mutual_information", "entropy"))
    if ours is None or theirs is None:
        return None
    return over_seeds([one - two for one, two in zip(ours, theirs, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One method against the reference on one block, by one metric.

    Attributes:
        model, task: the block.
        method: which method.
        metric: which metric.
        difference: the paired difference over the examples, with each seed's own interval.
        by_examples: what that says: a win or a loss needs an interval without 0, and the same sign of every seed.
        over_seeds: the same difference over seeds.
        by_seeds: what that says, a tie where all seeds' differences are equal; None where there is one seed.
        each_seed: what each seed's own interval over the examples says.
    """

    model: str
    task: str
    method: str
    metric: str
    difference: Difference
    by_examples: Outcome
    over_seeds: OverSeeds
    by_seeds: Outcome | None
    each_seed: tuple[Outcome, ...]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How often a method won, tied and lost against the reference.

    Attributes:
        method: which method.
        metric: which metric.
        judged: the blocks that both are in, in the study's order.
    """

    method: str
    metric: str
    judged: tuple[Judged, ...]

    def count(self, outcome: Outcome, by: Literal["examples", "seeds", "each_seed"] = "examples") -> int:
        """How many blocks had an outcome.

        Args:
            outcome: which.
            by: the interval over the examples, the t-interval over seeds, or each seed's own interval over the
                examples, in which case blocks times seeds are counted.
        """
        if by == "each_seed":
            return sum(seed == outcome for one in self.judged for seed in one.each_seed)
        return sum((one.by_examples if by == "examples" else one.by_seeds) == outcome for one in self.judged)

    @property
    def in_words(self) -> str:
        """E.g. "3 wins, 2 ties, 1 loss"."""
        plurals = {"win": "wins", "tie": "ties", "loss": "losses"}
        counts: dict[Outcome, int] = {o: self.count(o) for o in ("win", "tie", "loss")}
        return ", ".join(f"{count} {outcome if count == 1 else plurals[outcome]}" for outcome, count in counts.items())


def tallies(study: Study, *, split: str = "test", metrics: Sequence[str] = FULL) -> tuple[Tally, ...]:
    """Every method against the study's reference, over the blocks that both are in.

    Args:
        study: what was found.
        split: blocks without it are left out.
        metrics: which metrics.

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
    for block in study.blocks:
        comparison = block.comparison
        if comparison is None or split not in comparison.splits or comparison.reference is None:
            continue
        for method in comparison.methods:
            for metric in metrics if method != comparison.reference else ():
                found = _judged(block, comparison, method, metric, split)
                judged.setdefault((method, metric), []).append(found)
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


def frontier_means(frontier: Frontier, *, metrics: Sequence[str] = FULL) -> tuple[FrontierMean, ...]:
    """Every setting of a frontier's curves, then the points beside them: mean and standard error over seeds.

    Args:
        frontier: the points of every seed.
        metrics: as of `varlora.metrics.evaluate`.

    Returns:
        Label by label in the order of their first points, each by rising value.

    Example:
        >>> from varlora.report.study import FrontierPoint
        >>> points = [FrontierPoint(label="IVON", seed=s, value=0.5, metrics={"nll": 0.5 + 0.1 * s}) for s in (0, 1)]
        >>> (found,) = frontier_means(Frontier(over="temperature", split="test", points=points), metrics=["nll"])
        >>> found.value, round(found.metrics["nll"].mean, 3), round(found.metrics["nll"].se, 3)
        (0.5, 0.55, 0.05)
    """
    places: dict[str, dict[float | None, list[Mapping[str, float]]]] = {}
    for point in frontier.points:
        places.setdefault(point.label, {}).setdefault(point.value, []).append(point.metrics)
    return tuple(
        FrontierMean(
            label=label,
            value=value,
            metrics={metric: over_seeds([seed[metric] for seed in settings[value]]) for metric in metrics},
        )
        for beside in (False, True)
        for label, settings in places.items()
        for value in sorted(settings, key=lambda v: -math.inf if v is None else v)
        if (value is None) == beside
    )


def _judged(block: Block, comparison: Comparison, method: str, metric: str, split: str) -> Judged:
    assert comparison.reference is not None
    how = measure(metric)
    difference = comparison.difference(method, comparison.reference, metric=metric, split=split)
    spread = over_seeds(difference.per_seed)
    return Judged(
        model=block.model,
        task=block.task,
        method=method,
        metric=metric,
        difference=difference,
        by_examples=OUTCOMES[difference.verdict(how)],
        over_seeds=spread,
        by_seeds=spread.outcome(how),
        each_seed=tuple(
            _outcome(value, low, high, how)
            for value, (low, high) in zip(difference.per_seed, difference.intervals, strict=True)
        ),
    )


def _all_equal(values: Sequence[float]) -> bool:
    """Whether values differ by no more than the rounding of sums; NaN and infinities equal nothing."""
    if not all(map(math.isfinite, values)):
        return False
    return max(values) - min(values) <= ROUNDING * max(1.0, *map(abs, values))


def _outcome(value: float, low: float, high: float, how: Measure) -> Outcome:
    """What an interval says of a difference; NaN leaves nothing out."""
    if low > 0 or high < 0:
        return "win" if how.is_better(value) else "loss"
    return "tie"
