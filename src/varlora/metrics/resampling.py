"""How much of a number is luck of the test set: percentile bootstrap intervals over the examples.

A resample draws N examples with replacement and computes the whole metric on them, binning and sorting included.
Metrics take leading batch dimensions, so a block of resamples is one call. The paired difference computes both
methods on the *same* resample: what makes an example hard for both cancels, and the interval is narrower.

The percentile interval of a calibration error deserves care. Resampling adds noise to every bin, which can only
push the bins' absolute gaps up, so the interval of a well-calibrated model's ECE lies high and may not even
contain the estimate. In a paired difference it cancels as far as both methods are equally calibrated.

A share of rows that is 0 or 1 has no spread to resample: 12 of 12 right would be known for certain. Where the bootstrap
interval of a share has no width, the exact one of Clopper and Pearson takes its place.

Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Clopper & Pearson, "The use of
confidence or fiducial limits illustrated in the case of the binomial", 1934.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

Statistics = Callable[[Tensor], Mapping[str, Tensor]]  # indices (..., N) -> named numbers (...,)

BLOCK_NUMBERS = 2**20


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number on the whole test set, and its bootstrap interval of confidence `level`.

    That of a share without spread (all rows right) is exact, of Clopper and Pearson. NaN resamples (an AUROC without
    errors) are left out; all three are NaN if the estimate itself is.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95


def clopper_pearson(successes: float, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: it covers the true one with at least this probability, however few trials.

    Args:
        successes: how often it happened; a mean over several runs on the same trials need not be whole.
        trials: of how many independent trials; 0 gives (0, 1).
        level: the probability.

    Raises:
        ValueError: there are more successes than trials, or the level is not between 0 and 1.

    Example:
        >>> low, high = clopper_pearson(9, 10)
        >>> round(low, 4), round(high, 4)
        (0.555, 0.9975)
    """
    if not 0 <= successes <= trials or not 0 < level < 1:
        raise ValueError(f"got {successes} of {trials} at level {level}; give 0 to {trials}, and a level in (0, 1).")
    tail = (1 - level) / 2
    low = float(betaincinv(successes, trials - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high


def bootstrap(
    statistics: Statistics,
    num_examples: int,
    *,
    width: int = 1,
    sets: int | None = None,
    shares: Mapping[str, int] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of several numbers at once, all on the same resamples.

    Args:
        statistics: From indices of examples (..., N) to named numbers (...,).
        num_examples: N.
        width: Numbers that `statistics` gathers per example; bounds the memory used, changes no result.
        sets: K sets of N examples each, resampled independently of each other: `statistics` then gets (K, ..., N).
            None: one set.
        shares: Which of the numbers are shares of rows, and of how many: a bootstrap interval without width is replaced
            by the exact one.
        resamples: Number of resamples.
        level: Probability mass between `low` and `high`.
        seed: Of the resamples.

    Raises:
        ValueError: If there is no example, `level` is not in (0, 1), or `resamples` are too few for it.

    Example:
        >>> from varlora.metrics import aurc
        >>> confidence, correct = torch.linspace(0.3, 1, 50), torch.arange(50) > 10
        >>> interval = bootstrap(lambda i: {"aurc": aurc(confidence[i], correct[i])}, 50)["aurc"]
        >>> interval.low < interval.estimate < interval.high
        True
    """
    if num_examples < 1:
        raise ValueError("there are no examples to resample.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a probability between 0 and 1, e.g. 0.95.")
    if resamples < (needed := math.ceil(2 / (1 - level) - 1e-9)):
        raise ValueError(f"{resamples} resamples have no {level:g} interval: take {needed} at least, better 1000.")
    lead = () if sets is None else (sets,)
    estimates = statistics(torch.arange(num_examples).expand(*lead, num_examples))
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, BLOCK_NUMBERS // (num_examples * width))
    blocks = []
    for start in range(0, resamples, rows):
        shape = (*lead, min(rows, resamples - start), num_examples)
        # A resample has no order; in ascending order it is cheap to gather, and to sort if the examples were sorted.
        blocks.append(statistics(torch.randint(num_examples, shape, generator=generator).sort(dim=-1).values))
    return {
        name: _interval(float(estimate), torch.cat([block[name] for block in blocks]), level, (shares or {}).get(name))
        for name, estimate in estimates.items()
    }


def _interval(estimate: float, values: Tensor, level: float, share_of: int | None) -> Interval:
    if math.isnan(estimate):
        return Interval(estimate=math.nan, low=math.nan, high=math.nan, level=level)
    tail = (1 - level) / 2
    # Order statistics, outwards: interpolating between infinite values would give NaN.
    low = values.nanquantile(tail, interpolation="lower")
    high = values.nanquantile(1 - tail, interpolation="higher")
    if share_of is not None and low == high:
        exact_low, exact_high = clopper_pearson(min(estimate, 1.0) * share_of, share_of, level=level)
        return Interval(estimate=estimate, low=exact_low, high=exact_high, level=level)
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level)
