"""All metrics of a set of rows in one call: `evaluate`, the same with intervals, and two methods compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from varlora.metrics.ranking import number_kept
from varlora.metrics.resampling import Interval, Statistics, bootstrap, indices_of
from varlora.metrics.rows import ClassRows, CompletionRows, Rows, ScopeRows
from varlora.metrics.scoring import log_losses
from varlora.metrics.table import METRICS
from varlora.metrics.voting import AnswerRows

logger = logging.getLogger(__name__)


def evaluate(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Every metric of classification, in float64.

    The keys are the metrics of kind "classes" in `varlora.metrics.METRICS`: `accuracy`, `nll`, `ece_15`, `brier` and
    more (docs/metrics.md). Log-probabilities of samples (N, S, C) are averaged as probabilities, and add the means of
    `expected_entropy` and `mutual_information`. Fractions are fractions, not percent; logs are natural.

    Args:
        predictions: (N, C) probabilities, or natural log-probabilities (N, C), or (N, S, C) of S samples. What a
            (N, C) tensor holds is told from its numbers, which must sum to 1 as the one or as the other.
        labels: (N,) class indices.

    Raises:
        ValueError: If predictions are neither, or are not finite (-inf is a log-probability of 0), if labels are
            unknown (negative) or out of range, or if there is no example.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> metrics = evaluate(probs, torch.tensor([0, 0, 1, 1]))
        >>> metrics["accuracy"], round(metrics["nll"], 4), round(metrics["ece_15"], 4)
        (0.75, 0.4004, 0.3)
        >>> samples = torch.stack([probs.log(), probs.flip(-1).log()], dim=1)
        >>> round(evaluate(samples, torch.tensor([0, 0, 1, 1]))["nll"], 4)
        0.6931
    """
    rows = ClassRows(predictions, labels)
    _warn_of_impossible_labels(rows)
    return evaluate_rows(rows)


def evaluate_with_intervals(
    predictions: Tensor, labels: Tensor, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """`evaluate`, each number with its percentile bootstrap interval over the examples.

    An accuracy of 0 or 1, which has no spread to resample, has the exact interval of Clopper and Pearson.

    Args:
        predictions: As of `evaluate`.
        labels: As of `evaluate`.
        resamples: Number of resamples.
        level: Probability mass of the intervals.
        seed: Of the resamples.

    Raises:
        ValueError: As `evaluate`, and if `resamples` are too few for `level`.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> evaluate_with_intervals(probs, torch.tensor([0, 0, 1, 1]))["accuracy"]
        Interval(estimate=0.75, low=0.25, high=1.0, level=0.95)
        >>> round(evaluate_with_intervals(probs[:3], torch.tensor([0, 0, 1]))["accuracy"].low, 3)      # 3 of 3
        0.292
    """
    rows = ClassRows(predictions, labels)
    _warn_of_impossible_labels(rows)
    return evaluate_rows_with_intervals(rows, resamples=resamples, level=level, seed=seed)


def evaluate_rows(rows: Rows) -> dict[str, float]:
    """Every metric of rows of any kind; those that are not defined for them are left out.

    Args:
        rows: What is judged.

    Raises:
        ValueError: A metric gives numbers of a wrong shape.

    Example:
        >>> from varlora.metrics import AnswerRows
        >>> metrics = evaluate_rows(AnswerRows([["4", "5", "4"], ["7", "7", "7"]], ["4", "8"]))
        >>> metrics["exact_match"], round(metrics["exact_match_per_draw"], 4), round(metrics["agreement"], 4)
        (0.5, 0.3333, 0.8333)
    """
    numbers = {}
    for metric in (m for m in METRICS.values() if m.kind == rows.kind):
        if (value := metric.function(rows)) is not None:
            _check_shape(metric.name, value, (rows.number,) if metric.per_row else ())
            numbers[metric.name] = float(value.double().mean() if metric.per_row else value)
    return numbers


def evaluate_rows_with_intervals(
    rows: Rows, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """`evaluate_rows`, each number with its interval over the rows; arguments as of `evaluate_with_intervals`.

    Example:
        >>> from varlora.metrics import AnswerRows
        >>> rows = AnswerRows([["4"], ["7"], ["1"], ["2"]], ["4", "8", "1", "2"])
        >>> evaluate_rows_with_intervals(rows)["exact_match"]
        Interval(estimate=0.75, low=0.25, high=1.0, level=0.95)
    """
    return bootstrap(
        statistics_of(rows),
        rows.number,
        by_counts=True,
        width=_width(rows),
        shares={m.name: number_kept(m.share_of, rows.number) for m in METRICS.values() if m.share_of is not None},
        resamples=resamples,
        level=level,
        seed=seed,
    )


def compare(
    first: Tensor | Sequence[Tensor],
    second: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """first minus second, for every metric, with paired bootstrap intervals: same examples, same resamples.

    Args:
        first: Predictions of one method as of `evaluate`, or a list of them, one per training seed, whose metrics are
            averaged: the interval is about the choice of examples at these runs, and not about the seeds' luck.
        second: Predictions of the other method on the same examples in the same order.
        labels: (N,) class indices.
        resamples: Number of resamples.
        level: Probability mass of the intervals.
        seed: Of the resamples.

    Returns:
        The metrics that both have. A difference of two infinite NLLs is NaN.

    Raises:
        ValueError: As `evaluate`, if a method has no run, or if `resamples` are too few for `level`.

    Example:
        >>> import torch
        >>> labels = torch.arange(200) % 2
        >>> right = torch.nn.functional.one_hot(labels).double()
        >>> sure, unsure = 0.1 + 0.8 * right, 0.4 + 0.2 * right
        >>> difference = compare(sure, unsure, labels)["nll"]
        >>> round(difference.estimate, 4), difference.high < 0
        (-0.4055, True)
    """
    runs = [
        [ClassRows(run, labels) for run in ([method] if isinstance(method, Tensor) else method)]
        for method in (first, second)
    ]
    if not all(runs):
        raise ValueError("a method has no predictions: give one tensor, or a list with one per run.")
    of_runs = [[statistics_of(run) for run in method] for method in runs]

    def statistics(counts: Tensor) -> dict[str, Tensor]:
        one, two = ([run(counts) for run in method] for method in of_runs)
        shared = [name for name in one[0] if all(name in run for run in (*one, *two))]
        return {name: _mean([run[name] for run in one]) - _mean([run[name] for run in two]) for name in shared}

    width = max(_width(run) for method in runs for run in method)
    return bootstrap(statistics, len(labels), by_counts=True, width=width, resamples=resamples, level=level, seed=seed)


def check_metrics() -> None:
    """Computes every metric on made-up rows, so that one that cannot be computed is known before hours of work.

    Raises:
        ValueError: a package's metric cannot be imported, or gives numbers of a wrong shape.
    """
    draws = torch.tensor([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.25, 0.75]]], dtype=torch.float64).log()
    evaluate_rows(ClassRows(draws, torch.tensor([0, 0])))
    evaluate_rows(CompletionRows(draws[:, :, 0], torch.tensor([1, 2])))
    evaluate_rows(AnswerRows([["4", "5"], ["7", "7"]], ["4", "8"]))
    evaluate_rows(ScopeRows(draws, draws))


def statistics_of(rows: Rows, names: Sequence[str] | None = None) -> Statistics:
    """The metrics of rows that are drawn so often, counts (..., N), as `bootstrap(..., by_counts=True)` asks for them.

    Args:
        rows: What is judged.
        names: Which metrics; all of the rows' kind by default. Those that are not defined for them are left out.
    """
    metrics = [m for m in METRICS.values() if m.kind == rows.kind and (names is None or m.name in names)]
    values = {}
    for metric in metrics:
        if metric.per_row and (value := metric.function(rows)) is not None:
            _check_shape(metric.name, value, (rows.number,))
            values[metric.name] = value.double()
    means = _Means(values)

    def statistics(counts: Tensor) -> dict[str, Tensor]:
        of_means, taken, numbers = means(counts), None, {}
        for metric in metrics:
            if metric.per_row:
                number = of_means.get(metric.name)
            elif metric.of_counts is not None:
                number = metric.of_counts(rows, counts)
            else:
                taken = taken if taken is not None else rows.at(indices_of(counts))
                number = metric.function(taken)
            if number is not None:
                _check_shape(metric.name, number, counts.shape[:-1])
                numbers[metric.name] = number
        return numbers

    return statistics


def _width(rows: Rows) -> int:
    """How many numbers of a row are gathered at once, where a metric is to have the rows of each resample."""
    gathers = any(m.kind == rows.kind and not m.per_row and m.of_counts is None for m in METRICS.values())
    return rows.width if gathers else 1


class _Means:
    """Means of each row's values over resamples: one product with their counts."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.names = tuple(values)
        columns = torch.stack(list(values.values()), dim=-1) if values else torch.empty(0, 0)
        self.columns, self.infinite = columns.nan_to_num(0.0, 0.0, 0.0), []
        for value in (math.inf, -math.inf, math.nan):  # 0 times these would be NaN
            held = columns.isnan() if math.isnan(value) else columns == value
            if bool(held.any()):
                self.infinite.append((value, held.double()))

    def __call__(self, counts: Tensor) -> dict[str, Tensor]:
        if not self.names:
            return {}
        means = counts @ self.columns / counts.shape[-1]
        for value, held in self.infinite:
            means = torch.where(counts @ held > 0, means + value, means)
        return dict(zip(self.names, means.unbind(-1), strict=True))


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(
            f"the metric {name!r} gives numbers of shape {tuple(value.shape)} where {tuple(shape)} is needed: one for "
            "each row with per_row=True, else one for each set of rows."
        )


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _warn_of_impossible_labels(rows: ClassRows) -> None:
    if impossible := int(log_losses(rows.log_probs, rows.labels).isinf().sum()):
        logger.warning(
            "%d of %d labels have probability 0, so the NLL is infinite; it is not clipped.", impossible, rows.number
        )
