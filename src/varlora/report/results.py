"""Several methods on one task, over seeds: their metrics, intervals and paired differences.

Every number that the report shows is in `Comparison.to_dict()`, exactly. The metrics are those of `varlora.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from varlora.io.files import finite
from varlora.io.words import counted
from varlora.metrics import METRICS, Interval, bootstrap, evaluate, metric_named, shown_metrics
from varlora.metrics.evaluation import statistics_of
from varlora.metrics.ranking import number_kept
from varlora.report.estimates import Difference, Estimate, Summary
from varlora.report.rows import Row
from varlora.report.seeds import LEVEL


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Methods that were trained on the same task with the same seeds and judged on the same examples.

    Each seed may have as many examples of its own, the same for all methods; they are resampled seed by seed.

    Args:
        task: Its name.
        rows: One for every method, seed and split; methods appear in the report in the order of their first row.
        reference: The method that the others are compared with; None to compare with none.
        metrics: Which metrics are summarised; by default those that are shown everywhere.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Raises:
        ValueError: A row is there twice or missing, a seed's examples differ, or the reference is no method.

    Example:
        >>> import torch
        >>> from varlora.report import Comparison, Row
        >>> labels = torch.tensor([0, 1, 1, 0] * 10)
        >>> def row(method, logit):
        ...     logits = torch.where(torch.nn.functional.one_hot(labels) == 1, logit, 0.0)
        ...     return Row(method=method, seed=0, split="test", log_probs=logits.log_softmax(-1), labels=labels)
        >>> comparison = Comparison(task="toy", rows=[row("AdamW", 1.0), row("IVON", 2.0)])
        >>> round(comparison.summary("test")["IVON"].differences["nll"].value, 3)
        -0.186
    """

    task: str
    rows: Sequence[Row]
    reference: str | None = "AdamW"
    metrics: tuple[str, ...] = field(default_factory=shown_metrics)
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("there is nothing to compare: no rows were given")
        for metric in self.metrics:
            if metric_named(metric).kind != "classes":
                raise ValueError(f"methods are not compared by {metric!r}; there are {', '.join(shown_metrics())}.")
        if self.reference is not None and self.reference not in self.methods:
            raise ValueError(
                f"the reference {self.reference!r} is none of the methods; these are {', '.join(self.methods)}"
            )
        for split in self.splits:
            self._check(split)

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of their first row."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def splits(self) -> tuple[str, ...]:
        """In the order of their first row."""
        return tuple(dict.fromkeys(row.split for row in self.rows))

    def seeds(self, split: str) -> tuple[int, ...]:
        """The seeds of every method on `split`, ascending."""
        return tuple(sorted({row.seed for row in self.rows if row.split == split}))

    def runs(self, method: str, split: str) -> tuple[Row, ...]:
        """The rows of `method` on `split`, in the order of their seeds."""
        rows = [row for row in self.rows if row.method == method and row.split == split]
        return tuple(sorted(rows, key=lambda row: row.seed))

    def num_examples(self, split: str) -> int:
        """N of `split`, of each seed."""
        return len(self.runs(self.methods[0], split)[0].labels)

    def own_examples(self, split: str) -> bool:
        """Whether each seed has examples of its own."""
        first, *others = self.runs(self.methods[0], split)
        return not all(first.same_examples(row) for row in others)

    def logit_temperatures(self, split: str) -> dict[str, tuple[float, float]]:
        """The least and the largest T, over seeds, that divided a method's logits; without methods where all are 1."""
        temperatures = {method: [row.logit_temperature for row in self.runs(method, split)] for method in self.methods}
        return {method: (min(ts), max(ts)) for method, ts in temperatures.items() if set(ts) != {1.0}}

    @property
    def has_differences(self) -> bool:
        """Whether there is a method beside the reference."""
        return self.reference is not None and len(self.methods) > 1

    def describe(self, split: str) -> str:
        """E.g. "test: 500 examples, 3 seeds"."""
        own = " of each seed's own" if self.own_examples(split) else ""
        examples, seeds = counted(self.num_examples(split), "example"), counted(len(self.seeds(split)), "seed")
        return f"{split}: {examples}{own}, {seeds}"

    def summary(self, split: str) -> dict[str, Summary]:
        """Every method's numbers on `split`.

        Raises:
            ValueError: There is no such split.
        """
        return {method: self._summarise(method, split) for method in self.methods}

    def difference(self, method: str, other: str, *, metric: str, split: str) -> Difference:
        """Metric of `method` minus that of `other`, paired.

        Raises:
            ValueError: The comparison has no such split, or not this metric.
        """
        if metric not in self.metrics:
            raise ValueError(f"there is no metric {metric!r} here; there are {', '.join(self.metrics)}.")
        interval = self._intervals_of(split)[_pair(method, other, metric)]
        pairs = zip(self._evaluations[method, split], self._evaluations[other, split], strict=True)
        per_seed = tuple(one[metric] - two[metric] for one, two in pairs)
        judged = range(len(per_seed)) if other == self.reference and method != other else ()
        own = [self._intervals[split][_of_seed(method, metric, k)] for k in judged]
        intervals = tuple((one.low, one.high) for one in own)
        mean = _mean(per_seed)
        return Difference(value=mean, low=interval.low, high=interval.high, per_seed=per_seed, intervals=intervals)

    def to_dict(self) -> dict[str, Any]:
        """Everything the report shows, as JSON has it: infinities and NaN are None."""
        return {
            "task": self.task,
            "reference": self.reference,
            "interval": {"level": LEVEL, "resamples": self.resamples, "seed": self.seed, "over": "examples"},
            "splits": {
                split: {
                    "num_examples": self.num_examples(split),
                    "methods": {name: finite(summary) for name, summary in self.summary(split).items()},
                }
                for split in self.splits
            },
        }

    @cached_property
    def _evaluations(self) -> dict[tuple[str, str], tuple[dict[str, float], ...]]:
        return {
            (method, split): tuple(
                {**dict.fromkeys(self.metrics, math.nan), **evaluate(row.log_probs, row.labels)}
                for row in self.runs(method, split)
            )
            for method in self.methods
            for split in self.splits
        }

    @cached_property
    def _intervals(self) -> dict[str, dict[str, Interval]]:
        return {split: self._bootstrap(split) for split in self.splits}

    def _intervals_of(self, split: str) -> dict[str, Interval]:
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r}; the comparison has {', '.join(self.splits)}")
        return self._intervals[split]

    def _summarise(self, method: str, split: str) -> Summary:
        intervals = self._intervals_of(split)
        evaluations = self._evaluations[method, split]
        runs = self.runs(method, split)
        metrics = {}
        for metric in self.metrics:
            values = [evaluation[metric] for evaluation in evaluations]
            interval = intervals[_single(method, metric)]
            metrics[metric] = Estimate(
                mean=_mean(values), se=_standard_error(values), low=interval.low, high=interval.high
            )
        differences = {}
        if self.reference not in (None, method):
            differences = {
                metric: self.difference(method, self.reference, metric=metric, split=split) for metric in self.metrics
            }
        return Summary(
            seeds=tuple(row.seed for row in runs),
            per_seed=evaluations,
            metrics=metrics,
            differences=differences,
            train_seconds=_mean_or_none([row.train_seconds for row in runs]),
            predict_seconds=_mean_or_none([row.predict_seconds for row in runs]),
        )

    def _bootstrap(self, split: str) -> dict[str, Interval]:
        """Intervals of every method's mean over seeds and of every pair's difference, on the same resamples."""
        runs = {
            method: [statistics_of(row.examples, self.metrics) for row in self.runs(method, split)]
            for method in self.methods
        }
        own, seeds = self.own_examples(split), len(self.seeds(split))

        def statistics(counts: Tensor) -> dict[str, Tensor]:
            by_run: dict[str, dict[str, Tensor]] = {}
            for method, of_runs in runs.items():
                of_each = [of_run(counts[k] if own else counts) for k, of_run in enumerate(of_runs)]
                unknown = torch.full(counts.shape[int(own) : -1], math.nan, dtype=torch.float64)
                by_run[method] = {m: torch.stack([run.get(m, unknown) for run in of_each]) for m in self.metrics}
            means = {name: {metric: v.mean(0) for metric, v in values.items()} for name, values in by_run.items()}
            values = {_single(one, metric): value for one in means for metric, value in means[one].items()}
            for one in means:
                for two in means:
                    if one != two:
                        for metric in self.metrics:
                            values[_pair(one, two, metric)] = means[one][metric] - means[two][metric]
            if self.reference is not None:
                for one in means:
                    for metric in self.metrics if one != self.reference else ():
                        differences_K = by_run[one][metric] - by_run[self.reference][metric]
                        values |= {_of_seed(one, metric, k): difference for k, difference in enumerate(differences_K)}
            return values

        number = self.num_examples(split)
        of_rows = {name: share for name in self.metrics if (share := metric_named(name).share_of) is not None}
        shares = {name: number_kept(share, number) * (seeds if own else 1) for name, share in of_rows.items()}
        intervals = bootstrap(
            statistics,
            number,
            by_counts=True,
            width=seeds if own else 1,
            sets=seeds if own else None,
            shares={_single(method, metric): share for method in runs for metric, share in shares.items()},
            resamples=self.resamples,
            level=LEVEL,
            seed=self.seed,
        )
        return {name: _of_shares(name, interval, intervals) for name, interval in intervals.items()}

    def _check(self, split: str) -> None:
        seeds = self.seeds(split)
        first = {row.seed: row for row in reversed(self.rows) if row.split == split}
        for method in self.methods:
            runs = self.runs(method, split)
            had = tuple(row.seed for row in runs)
            if had != seeds:
                wrong = "twice" if len(set(had)) < len(had) else "missing"
                culprits = sorted({s for s in had if had.count(s) > 1} or set(seeds) - set(had))
                raise ValueError(
                    f"{method!r} on {split!r}: seed {', '.join(map(str, culprits))} {wrong}; every method needs "
                    f"one row for each of the seeds {', '.join(map(str, seeds))}"
                )
            for row in runs:
                if not row.same_examples(first[row.seed]):
                    raise ValueError(
                        f"{method!r}, seed {row.seed}: its labels on {split!r} are not those of the other rows, or its "
                        "ids are not; methods can only be compared on the same examples in the same order"
                    )
                if len(row.labels) != len(first[seeds[0]].labels):
                    raise ValueError(
                        f"{split!r} has {len(first[seeds[0]].labels)} examples for seed {seeds[0]} and "
                        f"{len(row.labels)} for seed {row.seed}; each seed must have as many"
                    )


def _of_shares(name: str, interval: Interval, intervals: Mapping[str, Interval]) -> Interval:
    """The interval; of shares that differ alike in every resample (all right, all wrong), that of both shares' ends."""
    metric, *methods = name.split("\0")
    if METRICS[metric].share_of is None or len(methods) != 2 or not interval.low == interval.high != 0:
        return interval
    one, two = (intervals[_single(method, metric)] for method in methods)
    return replace(interval, low=one.low - two.high, high=one.high - two.low)


def _single(method: str, metric: str) -> str:
    return f"{metric}\0{method}"


def _pair(one: str, two: str, metric: str) -> str:
    return f"{metric}\0{one}\0{two}"


def _of_seed(method: str, metric: str, seed: int) -> str:
    return f"{metric}\0\0{seed}\0{method}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _standard_error(values: Sequence[float]) -> float | None:
    """s / sqrt(K), s² with K - 1 in its denominator."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
