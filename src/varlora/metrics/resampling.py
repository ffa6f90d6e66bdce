"""How much of a number is luck of the test set: percentile bootstrap intervals over the examples.

A resample draws N examples with replacement and computes the whole metric on them, binning and sorting included. It is
told by how often it holds each example; statistics take a block of resamples in one call, so that a mean is one matrix
product with the counts (`varlora.metrics.counted` has the rest). The paired difference computes both methods on the
*same* resample: what makes an example hard for both cancels, and the interval is narrower.

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

Statistics = Callable[[Tensor], Mapping[str, Tensor]]
"""From indices of examples (..., N), or how often each is drawn (..., N), to named numbers (...,)."""
BLOCK_NUMBERS = 2**20
"""Numbers that statistics gather at once."""


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
    by_counts: bool = False,
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
        by_counts: Whether `statistics` takes how often each example is drawn, (..., N) float64, in place of indices.
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
        >>> mean = bootstrap(lambda counts: {"mean": counts @ confidence.double() / 50}, 50, by_counts=True)["mean"]
        >>> abs(mean.low - bootstrap(lambda i: {"mean": confidence.double()[i].mean(-1)}, 50)["mean"].low) < 1e-12
        True
    """
    if num_examples < 1:
        raise ValueError("there are no examples to resample.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a probability between 0 and 1, e.g. 0.95.")
    if resamples < (needed := math.ceil(2 / (1 - level) - 1e-9)):
        raise ValueError(f"{resamples} resamples have no {level:g} interval: take {needed} at least, better 1000.")
    lead = () if sets is None else (sets,)
    of_counts = statistics if by_counts else lambda counts: statistics(indices_of(counts))
    estimates = of_counts(torch.ones((*lead, num_examples), dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, BLOCK_NUMBERS // (num_examples * width))
    blocks = []
    for start in range(0, resamples, rows):
        shape = (*lead, min(rows, resamples - start), num_examples)
        blocks.append(of_counts(counts_of(torch.randint(num_examples, shape, generator=generator))))
    return {
        name: _interval(float(estimate), torch.cat([block[name] for block in blocks]), level, (shares or {}).get(name))
        for name, estimate in estimates.items()
    }


def counts_of(indices: Tensor) -> Tensor:
    """How often each of N examples is among indices (..., N), as float64 (..., N).

    Example:
        >>> counts_of(torch.tensor([2, 0, 2])).tolist()
        [1.0, 0.0, 2.0]
    """
    number = indices.shape[-1]
    sets = indices.reshape(-1, number)
    own = sets + number * torch.arange(len(sets))[:, None]  # each set counts in a range of its own
    return torch.bincount(own.flatten(), minlength=sets.numel()).double().reshape(indices.shape)


def indices_of(counts: Tensor) -> Tensor:
    """The examples that are drawn so often, (..., N), in ascending order: cheap to gather.

    Example:
        >>> indices_of(torch.tensor([1.0, 0.0, 2.0])).tolist()
        [0, 2, 2]
    """
    each = torch.arange(counts.shape[-1]).expand(counts.shape).flatten()
    return each.repeat_interleave(counts.flatten().long()).reshape(counts.shape)


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
