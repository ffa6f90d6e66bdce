"""What the seeds of a training say of a difference, and the one verdict on it that examples and seeds give together.

    over examples    a paired bootstrap of the test set: the luck of its rows (`varlora.report.Comparison`)
    over seeds       Student's t of the K seeds' paired differences: the luck of training

                     mean ± t(K − 1; 97.5 %) · s / √K

A difference is clear where both intervals leave 0 out. One seed tells nothing of another's luck, and there is no such
verdict on it. Values that are all equal, as accuracies on few rows can be, tell nothing of their spread: there is no
interval over seeds then, and the difference is not clear. How often a difference that is none is called clear:
`benchmarks/verdict_rates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from varlora.metrics import Metric
from varlora.report.vocabulary import Verdict

LEVEL = 0.95
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

    def verdict(self, how: Metric, examples: tuple[float, float] | None = None) -> Verdict:
        """What these values, being differences, show.

        Args:
            how: the metric whose differences they are.
            examples: the mean difference's paired interval over the examples; None where nothing is known of it, so
                that the seeds judge alone.

        Returns:
            "equal": it is 0 always; or it is clear, and 0 to the digits that are shown. "one seed": there is no other
            to know the luck of training by. "better", "worse": both intervals leave 0 out. "unclear": all else.

        Example:
            >>> from varlora.metrics import METRICS
            >>> accuracy, nll = METRICS["accuracy"], METRICS["nll"]
            >>> over_seeds([0.018, 0.02, 0.022]).verdict(nll), over_seeds([0.01, 0.02, 0.03]).verdict(accuracy)
            ('worse', 'unclear')
            >>> over_seeds([0.018, 0.02, 0.022]).verdict(nll, examples=(-0.01, 0.05))
            'unclear'
            >>> over_seeds([0.02, 0.02, 0.02]).verdict(nll)                    # nothing is known of the spread
            'unclear'
            >>> over_seeds([0.2]).verdict(nll), over_seeds([0.0002, 0.0002, 0.00021]).verdict(nll)
            ('one seed', 'equal')
        """
        if not self.se and all(abs(value) <= ROUNDING for value in (self.mean, *(examples or ()))):
            return "equal"
        if self.seeds == 1:
            return "one seed"
        of_seeds = None if self.low is None or self.high is None else _side((self.low, self.high))
        if not of_seeds or (examples is not None and _side(examples) != of_seeds):
            return "unclear"
        if how.shows_nothing(self.mean):
            return "equal"
        return "better" if how.is_better(self.mean) else "worse"


def over_seeds(values: Sequence[float], level: float = LEVEL) -> OverSeeds:
    """The mean of the seeds' values, its standard error, and its t-interval.

    Args:
        values: one of each seed.
        level: confidence of the interval.

    Raises:
        ValueError: there is no value, or the level is none.

    Example:
        >>> spread = over_seeds([1.0, 2.0, 3.0])
        >>> spread.mean, round(spread.se, 4), round(spread.high - spread.mean, 4)
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
    half = float(stdtrit(count - 1, (1 + level) / 2)) * se
    return OverSeeds(mean=mean, se=se, low=mean - half, high=mean + half, seeds=count)


def _side(interval: tuple[float, float]) -> int:
    """On which side of 0 an interval lies, +1 or −1; 0 where it holds 0, or NaN."""
    low, high = interval
    return 1 if low > 0 else -1 if high < 0 else 0


def _all_equal(values: Sequence[float]) -> bool:
    """Whether values differ by no more than the rounding of sums; NaN and infinities equal nothing."""
    if not all(map(math.isfinite, values)):
        return False
    return max(values) - min(values) <= ROUNDING * max(1.0, *map(abs, values))
