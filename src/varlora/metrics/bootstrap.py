"""How much of a number is luck of the test set: percentile bootstrap intervals over the examples.

A resample draws N examples with replacement and computes the whole metric on them, binning and sorting included.
Metrics take leading batch dimensions, so a block of resamples is one call. The paired difference computes both
methods on the *same* resample: what makes an example hard for both cancels, and the interval is narrower.

The percentile interval of a calibration error deserves care. Resampling adds noise to every bin, which can only
push the bins' absolute gaps up, so the interval of a well-calibrated model's ECE lies high and may not even
contain the estimate. In a paired difference it cancels as far as both methods are equally calibrated.

A share of rows that is 0 or 1 has no spread to resample: 12 of 12 right would be known for certain. Where the bootstrap
interval of a share has no width, the exact one of Clopper and Pearson takes its place (`varlora.metrics.binomial`).

Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.metrics.binomial import clopper_pearson

Metric = Callable[..., Tensor]  # e.g. aurc: tensors (..., N, *) -> (...,)
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


def bootstrap_interval(
    metric: Metric, *examples: Tensor, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of one metric over the examples.

    Args:
        metric: Any metric of this package, or a function that accepts leading batch dimensions as they do.
        *examples: The metric's arguments; the first dimension of each is the examples, N.
        resamples: Number of resamples.
        level: Probability mass between `low` and `high`.
        seed: Of the resamples; the same seed and N give the same resamples.

    Raises:
        ValueError: If N is 0 or not the same for all tensors, or `resamples` are too few for `level`.

    Example:
        >>> import torch
        >>> from varlora.metrics import aurc
        >>> confidence, correct = torch.linspace(0.3, 1, 50), torch.arange(50) > 10
        >>> interval = bootstrap_interval(aurc, confidence, correct)
        >>> interval.low < interval.estimate < interval.high
        True
    """
    num_examples = _common_length([examples])

    def statistics(indices: Tensor) -> dict[str, Tensor]:
        return {"metric": metric(*(x[indices] for x in examples))}

    width = sum(x[0].numel() for x in examples)
    return bootstrap(statistics, num_examples, width=width, resamples=resamples, level=level, seed=seed)["metric"]


def paired_difference(
    metric: Metric,
    first: Sequence[Sequence[Tensor]],
    second: Sequence[Sequence[Tensor]],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of metric(first) - metric(second), two methods on the same examples in the same order.

    Each method is given as its runs (one per training seed): the metric is computed run by run and averaged. Every
    run of both methods sees the same resampled examples, so the interval is about the choice of test examples at
    these runs; how much the training seeds matter is not in it.

    Args:
        metric: As of `bootstrap_interval`.
        first: The runs of one method; a run is the tuple of the metric's arguments.
        second: The runs of the other; their number may differ.
        resamples: Number of resamples.
        level: Probability mass between `low` and `high`.
        seed: Of the resamples.

    Raises:
        ValueError: If N is 0 or not the same for all tensors, a method has no run, or `resamples` are too few for
            `level`.

    Example:
        >>> import torch
        >>> from varlora.metrics import aurc
        >>> correct = torch.arange(50) > 10
        >>> sorted_well, sorted_badly = torch.linspace(0.3, 1, 50), torch.linspace(1, 0.3, 50)
        >>> paired_difference(aurc, [(sorted_well, correct)], [(sorted_badly, correct)]).high < 0
        True
    """
    if not first or not second:
        raise ValueError("a method has no run: give at least one tuple of tensors for each method.")
    num_examples = _common_length([*first, *second])

    def mean_over(runs: Sequence[Sequence[Tensor]], indices: Tensor) -> Tensor:
        return torch.stack([metric(*(x[indices] for x in run)) for run in runs]).mean(0)

    def statistics(indices: Tensor) -> dict[str, Tensor]:
        return {"metric": mean_over(first, indices) - mean_over(second, indices)}

    width = max(sum(x[0].numel() for x in run) for run in (*first, *second))
    return bootstrap(statistics, num_examples, width=width, resamples=resamples, level=level, seed=seed)["metric"]


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
        ValueError: If `level` is not in (0, 1), or `resamples` are too few for it.
    """
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


def _common_length(runs: Sequence[Sequence[Tensor]]) -> int:
    lengths = sorted({x.shape[0] for run in runs for x in run})
    if len(lengths) != 1:
        raise ValueError(f"tensors have {lengths} examples: give each the same examples along dimension 0.")
    if lengths == [0]:
        raise ValueError("there are no examples to resample.")
    return lengths[0]
