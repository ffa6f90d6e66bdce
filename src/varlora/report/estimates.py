"""What a comparison says of one method: its means with intervals, and its differences from another method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from varlora.metrics import Metric
from varlora.report.seeds import OverSeeds, over_seeds
from varlora.report.vocabulary import Verdict


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric's mean over seeds.

    Args:
        mean: Over the seeds.
        se: The standard error of that mean, from the spread between seeds; None for a single seed.
        low: Lower end of the bootstrap interval over the examples.
        high: Its upper end.
    """

    mean: float
    se: float | None
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a method gains or loses against another on the same examples, averaged over seeds.

    Args:
        value: Metric of the one minus metric of the other.
        low: Lower end of the paired bootstrap interval over the examples.
        high: Its upper end.
        per_seed: The difference of each seed.
        intervals: Lower and upper end of each seed's own interval; only for differences from the reference.
    """

    value: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()

    @cached_property
    def over_seeds(self) -> OverSeeds:
        """The seeds' differences, with what their spread says."""
        return over_seeds(self.per_seed)

    def verdict(self, how: Metric) -> Verdict:
        """What the difference shows, by the examples and the seeds together (`OverSeeds.verdict`)."""
        return self.over_seeds.verdict(how, examples=(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method on one split.

    Args:
        seeds: In the order of `per_seed`.
        per_seed: Everything that `varlora.metrics.evaluate` says of each seed.
        metrics: Means over seeds with intervals, of the comparison's metrics.
        differences: From the reference method; empty for the reference itself.
        train_seconds: Mean over seeds; None if a seed's is not known.
        predict_seconds: Mean over seeds; None if a seed's is not known.
    """

    seeds: tuple[int, ...]
    per_seed: tuple[dict[str, float], ...]
    metrics: dict[str, Estimate]
    differences: dict[str, Difference]
    train_seconds: float | None
    predict_seconds: float | None
