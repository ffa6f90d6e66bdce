"""Which rows to answer: a threshold on how sure the model is, chosen on rows that are not reported.

A row is answered if its sureness is at least the threshold. For a wanted coverage, u = −sureness is a score of
`varlora.metrics.conformal`: the share of new rows that are answered is at least the wanted one, and at most 1/(n + 1)
above it without ties, on average over the choice of the n rows. For a wanted accuracy see
`varlora.metrics.selective_accuracy`.

Source: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11, 2010; the coverage by
split-conformal prediction (sources there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from varlora.metrics.conformal import ConformalThreshold, Exact, fit_threshold
from varlora.metrics.inputs import as_float64
from varlora.metrics.resampling import clopper_pearson
from varlora.metrics.uncertainty import mean_log_probs, mutual_information, predictive_entropy

Sureness = Literal["confidence", "entropy", "mutual_information"]


def sureness(log_probs: Tensor, by: Sureness = "confidence") -> Tensor:
    """How sure a prediction is of each row; higher is surer.

    Args:
        log_probs: (N, S, C) log-probabilities of S draws.
        by: "confidence" (probability of the answer), "entropy" (minus the predictive entropy) or "mutual_information"
            (minus how far the draws disagree; it needs several).

    Returns:
        (N,) in float64.

    Raises:
        ValueError: there is no such score, or one draw cannot disagree with itself.

    Example:
        >>> log_probs = torch.tensor([[[0.75, 0.25], [0.75, 0.25]], [[1.0, 0.0], [0.0, 1.0]]]).log()
        >>> sureness(log_probs).round(decimals=3).tolist()
        [0.75, 0.5]
        >>> sureness(log_probs, "mutual_information").round(decimals=3).abs().tolist()
        [0.0, 0.693]
    """
    if by not in get_args(Sureness):
        raise ValueError(f"sureness by {by!r}; allowed: {', '.join(get_args(Sureness))}.")
    if log_probs.dim() != 3:
        raise ValueError(f"log_probs have shape {tuple(log_probs.shape)}; give (N, S, C), with S = 1 for one draw.")
    if by == "confidence":
        return mean_log_probs(log_probs).exp().max(-1).values
    if by == "entropy":
        return 0.0 - predictive_entropy(log_probs)
    if log_probs.shape[1] < 2:
        raise ValueError(
            "mutual information is how far the draws disagree, and there is one: predict with several draws, or go by "
            "'confidence' or 'entropy'."
        )
    return 0.0 - mutual_information(log_probs)


@dataclass(frozen=True, kw_only=True)
class CoverageThreshold(ConformalThreshold):
    """A threshold for a wanted coverage: a row is answered if its sureness is at least this; −∞ answers all."""

    @property
    def sentence(self) -> str:
        """The promise, in words."""
        if self.value == -math.inf:
            return f"Every row is answered: {self._why_all}."
        return (
            f"At least {100 * self.coverage:.4g} % of new rows like these {self.rows} are answered, {self._draws}, "
            "more where scores are tied."
        )


def threshold_for_coverage(sure: Tensor, coverage: Exact) -> CoverageThreshold:
    """The threshold at which at least a wanted share of new rows is answered.

    Args:
        sure: (n,) sureness of rows that the model was not trained on and that are not reported. No labels are needed.
        coverage: the wanted share, in (0, 1].

    Raises:
        ValueError: an argument does not fit.

    Example:
        >>> threshold = threshold_for_coverage(torch.linspace(0.51, 0.99, 49), "0.9")
        >>> round(threshold.value, 2), threshold.expected
        (0.55, 0.9)
        >>> threshold_for_coverage(torch.tensor([0.9, 0.8]), 0.9).value        # too few to leave any out
        -inf
    """
    fitted = fit_threshold(-sure, coverage)
    return CoverageThreshold(**{**fitted, "value": 0.0 - fitted["value"]})


def answered_metrics(answered: Tensor, correct: Tensor | None = None) -> dict[str, float]:
    """What came of answering some rows and not others.

    Args:
        answered: (N,) bool.
        correct: (N,) whether each answer is right, also those that are not given; None where labels are unknown.

    Returns:
        `rows`, `answered` (a number), `share_answered`; with labels `accuracy` among the answered and its exact 95 %
        interval `accuracy_low`, `accuracy_high` (NaN, 0 and 1 if none is answered), and `accuracy_of_all`.

    Raises:
        ValueError: shapes differ, or there is no row.

    Example:
        >>> metrics = answered_metrics(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        >>> metrics["answered"], metrics["accuracy"], round(metrics["accuracy_of_all"], 3)
        (2, 0.5, 0.333)
    """
    if answered.dim() != 1 or answered.dtype != torch.bool or not len(answered):
        raise ValueError(f"answered is {answered.dtype} of shape {tuple(answered.shape)}; give bool (N,), N above 0.")
    number = int(answered.sum())
    metrics: dict[str, float] = {"rows": len(answered), "answered": number, "share_answered": number / len(answered)}
    if correct is None:
        return metrics
    if correct.shape != answered.shape:
        raise ValueError(f"answered has shape {tuple(answered.shape)} and correct {tuple(correct.shape)}.")
    right = int((as_float64(correct) * as_float64(answered)).sum())
    low, high = clopper_pearson(right, number)
    return {
        **metrics,
        "accuracy": right / number if number else math.nan,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_of_all": float(as_float64(correct).mean()),
    }
