"""All metrics of a set of predictions in one call: `evaluate`, the same with intervals, and two methods compared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.metrics.bootstrap import Interval, bootstrap
from varlora.metrics.calibration import (
    classwise_calibration_error,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from varlora.metrics.inputs import as_labels, as_predictions
from varlora.metrics.ranking import accuracy_on_curve, auroc, number_kept, risk_coverage
from varlora.metrics.scoring import brier_scores, confidence_and_correct, log_losses
from varlora.metrics.uncertainty import entropy, expected_entropy, mean_log_probs, mutual_information

logger = logging.getLogger(__name__)

COVERAGES = (80, 90, 95)
"""Percent of the rows, the surest of them, whose accuracy is told."""


def evaluate(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Every metric of classification, in float64.

    Keys: `accuracy`, `nll`, `brier`; `ece_10`, `ece_15`, `ece_20`, `ece_15_equal_mass`, `mce_15`,
    `classwise_ece_15`; `aurc`, `accuracy_at_80`, `accuracy_at_90`, `accuracy_at_95` (percent coverage) and
    `auroc_errors` (does low confidence find the errors; NaN if all or no answers are right); mean
    `predictive_entropy`. Log-probabilities of samples (N, S, C) are averaged as probabilities, and add the means of
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
    examples = _read(predictions, labels)
    _warn_of_impossible_labels(examples)
    return {name: float(value) for name, value in examples.metrics(torch.arange(len(labels))).items()}


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
    examples = _read(predictions, labels)
    _warn_of_impossible_labels(examples)
    examples = examples.take(examples.confidence.argsort(stable=True))
    kept = {f"accuracy_at_{percent}": number_kept(percent / 100, len(labels)) for percent in COVERAGES}
    return bootstrap(
        examples.metrics,
        len(labels),
        width=examples.probs.shape[-1],
        shares={"accuracy": len(labels), **kept},
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
            averaged (`paired_difference` says what the interval then covers).
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
        [_read(run, labels) for run in ([method] if isinstance(method, Tensor) else method)]
        for method in (first, second)
    ]
    if not all(runs):
        raise ValueError("a method has no predictions: give one tensor, or a list with one per run.")

    def statistics(indices: Tensor) -> dict[str, Tensor]:
        means = [_mean_over_runs([run.metrics(indices) for run in method]) for method in runs]
        return {name: means[0][name] - means[1][name] for name in means[0] if name in means[1]}

    width = max(run.probs.shape[-1] for method in runs for run in method)
    return bootstrap(statistics, len(labels), width=width, resamples=resamples, level=level, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Examples:
    """What the metrics need of each of N examples, worked out once."""

    probs: Tensor  # (N, C)
    labels: Tensor
    confidence: Tensor
    correct: Tensor
    averaged: dict[str, Tensor]  # metrics that are means over the examples

    def take(self, indices: Tensor) -> _Examples:
        return _Examples(
            probs=self.probs[indices],
            labels=self.labels[indices],
            confidence=self.confidence[indices],
            correct=self.correct[indices],
            averaged={name: values[indices] for name, values in self.averaged.items()},
        )

    def metrics(self, indices: Tensor) -> dict[str, Tensor]:
        """All metrics of the examples at `indices` (..., N); each is (...,)."""
        sample = self.take(indices)
        confidence, correct = sample.confidence, sample.correct
        _, risk = risk_coverage(confidence, correct)
        return {
            **{name: values.mean(-1) for name, values in sample.averaged.items()},
            **{f"ece_{bins}": expected_calibration_error(confidence, correct, bins=bins) for bins in (10, 15, 20)},
            "ece_15_equal_mass": equal_mass_calibration_error(confidence, correct, bins=15),
            "mce_15": maximum_calibration_error(confidence, correct, bins=15),
            "classwise_ece_15": classwise_calibration_error(sample.probs, sample.labels, bins=15),
            "aurc": risk.mean(-1),
            **{f"accuracy_at_{c}": accuracy_on_curve(risk, coverage=c / 100) for c in COVERAGES},
            "auroc_errors": auroc(-confidence, correct == 0),
        }


def _read(predictions: Tensor, labels: Tensor) -> _Examples:
    values, is_log = as_predictions(predictions)
    log_probs = values if is_log else values.log()
    of_samples = {}
    if log_probs.dim() == 3:
        of_samples = {
            "expected_entropy": expected_entropy(log_probs),
            "mutual_information": mutual_information(log_probs),
        }
        log_probs = mean_log_probs(log_probs)
    # exp(log(0.6)) is not 0.6, and would fall into another bin.
    probs = log_probs.exp() if is_log else values
    labels = as_labels(labels, probs)
    confidence, correct = confidence_and_correct(probs, labels)
    return _Examples(
        probs=probs,
        labels=labels,
        confidence=confidence,
        correct=correct,
        averaged={
            "accuracy": correct.double(),
            "nll": log_losses(log_probs, labels),
            "brier": brier_scores(probs, labels),
            "predictive_entropy": entropy(log_probs),
            **of_samples,
        },
    )


def _warn_of_impossible_labels(examples: _Examples) -> None:
    if impossible := int(examples.averaged["nll"].isinf().sum()):
        logger.warning(
            "%d of %d labels have probability 0, so the NLL is infinite; it is not clipped.",
            impossible,
            len(examples.labels),
        )


def _mean_over_runs(runs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in shared}
