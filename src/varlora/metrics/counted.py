"""Metrics of resamples that are told by how often they hold each row, and not row by row.

The number is that of the twin in `varlora.metrics.calibration` or `.ranking` for the rows as they were drawn, to
rounding. A resample's rows need not be gathered, binned or sorted: the rows are binned or sorted once, and what a
resample adds up to in a bin, or down to a place of the order, is a product with its counts, or their cumulative sum.

Values are (N,) of the whole set; counts are (..., N) float64, whole numbers that sum to N, and the result is (...,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.metrics.calibration import bin_index, checked_confidence, equal_masses
from varlora.metrics.inputs import as_examples, as_float64, as_labels
from varlora.metrics.ranking import number_kept

CLASSES_AT_ONCE = 16
"""Classes whose bins are summed in one product; bounds the memory, changes no result."""


def counted_calibration_error(counts: Tensor, confidence: Tensor, correct: Tensor, *, bins: int) -> Tensor:
    """`expected_calibration_error` of resamples.

    Example:
        >>> counts = torch.tensor([2, 0, 1], dtype=torch.float64)
        >>> confidence, correct = torch.tensor([0.75, 0.5, 1.0]), torch.tensor([1, 0, 1])
        >>> round(float(counted_calibration_error(counts, confidence, correct, bins=15)), 6)
        0.166667
    """
    confidence, correct = checked_confidence(confidence, correct, bins)
    gaps = counts @ _by_bin(correct - confidence, bin_index(confidence, bins), bins)
    return gaps.abs().sum(-1) / counts.shape[-1]


def counted_maximum_error(counts: Tensor, confidence: Tensor, correct: Tensor, *, bins: int) -> Tensor:
    """`maximum_calibration_error` of resamples."""
    confidence, correct = checked_confidence(confidence, correct, bins)
    index = bin_index(confidence, bins)
    gaps = counts @ _by_bin(correct - confidence, index, bins)
    return (gaps.abs() / (counts @ _by_bin(torch.ones_like(confidence), index, bins)).clamp(min=1)).amax(-1)


def counted_classwise_error(counts: Tensor, probs: Tensor, labels: Tensor, *, bins: int) -> Tensor:
    """`classwise_calibration_error` of resamples; probs are (N, C), labels (N,)."""
    probs = as_float64(probs)
    labels = as_labels(labels, probs)
    total = torch.zeros(counts.shape[:-1], dtype=torch.float64)
    for first in range(0, probs.shape[-1], CLASSES_AT_ONCE):
        confidence = probs[:, first : first + CLASSES_AT_ONCE]
        classes = torch.arange(first, first + confidence.shape[-1])
        gaps = _by_bin(
            (labels[:, None] == classes).double() - confidence, bin_index(confidence.contiguous(), bins), bins
        )
        total += (counts @ gaps.flatten(1)).abs().sum(-1)
    return total / (counts.shape[-1] * probs.shape[-1])


def counted_equal_mass_error(counts: Tensor, confidence: Tensor, correct: Tensor, *, bins: int) -> Tensor:
    """`equal_mass_calibration_error` of resamples."""
    confidence, correct = checked_confidence(confidence, correct, bins)
    ranked = Ranked.of(confidence)
    up_to, gaps = ranked.cumulative(counts), ranked.cumulative(counts, correct - confidence)
    ends = torch.cat([torch.zeros(1), equal_masses(counts.shape[-1], bins).cumsum(0)])
    at_ends = _along(up_to, gaps, ends.double().expand(*counts.shape[:-1], -1))
    return at_ends.diff(dim=-1).abs().sum(-1) / counts.shape[-1]


def counted_aurc(counts: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """`aurc` of resamples.

    Within equally sure rows the errors are shared out evenly, so that the k-th surest row of a resample adds r to them,
    the equals' error rate: risk(k) = (e + (k − n) r) / k with n rows and e errors before. Its sum over the equals is
    (e − n r)(H(n') − H(n)) + (n' − n) r, with the harmonic numbers H.
    """
    before, errors = _errors_of_surest(counts, confidence, correct)
    number = counts.shape[-1]
    harmonic = torch.cat([torch.zeros(1, dtype=torch.float64), (1 / torch.arange(1.0, number + 1).double()).cumsum(0)])
    sizes, wrong = before.diff(dim=-1), errors.diff(dim=-1)
    rate = wrong / sizes.clamp(min=1)
    steps = harmonic[before.round().long()].diff(dim=-1)
    return ((errors[..., :-1] - before[..., :-1] * rate) * steps + wrong).sum(-1) / number


def counted_accuracy_at(counts: Tensor, confidence: Tensor, correct: Tensor, *, coverage: float) -> Tensor:
    """`accuracy_at_coverage` of resamples."""
    before, errors = _errors_of_surest(counts, confidence, correct)
    kept = number_kept(coverage, counts.shape[-1])
    place = torch.full((*counts.shape[:-1], 1), float(kept), dtype=torch.float64)
    return 1 - _along(before, errors, place).squeeze(-1) / kept


def counted_auroc(counts: Tensor, score: Tensor, positive: Tensor) -> Tensor:
    """`auroc` of resamples."""
    score, positive = as_examples(score, positive, name="score")
    ranked = Ranked.of(score)
    positives, negatives = ranked.cumulative(counts, positive), ranked.cumulative(counts, 1 - positive)
    below = (negatives[..., :-1] + negatives[..., 1:]) / 2  # of the equals, half
    return (positives.diff(dim=-1) * below).sum(-1) / (positives[..., -1] * negatives[..., -1])


def counted_fpr95(counts: Tensor, score: Tensor, positive: Tensor) -> Tensor:
    """`fpr95` of resamples."""
    score, positive = as_examples(score, positive, name="score")
    ranked = Ranked.of(-score)
    positives, negatives = ranked.cumulative(counts, positive), ranked.cumulative(counts, 1 - positive)
    number = positives[..., -1:]
    needed = torch.div(95 * number.round().long() + 99, 100, rounding_mode="floor").double()
    enough = torch.searchsorted(positives.contiguous(), needed).clamp(max=positives.shape[-1] - 1)
    rate = (negatives.gather(-1, enough) / negatives[..., -1:]).squeeze(-1)
    return torch.where(number.squeeze(-1) > 0, rate, math.nan)


@dataclass(frozen=True)
class Ranked:
    """Rows in ascending order of a key.

    Attributes:
        order: (N,) the rows in that order.
        ends: (G,) the last place of each run of equal keys.
    """

    order: Tensor
    ends: Tensor

    @classmethod
    def of(cls, key: Tensor) -> Ranked:
        """The order of keys (N,)."""
        ascending, order = key.sort(stable=True)
        last = torch.cat([ascending[1:] != ascending[:-1], torch.ones(1, dtype=torch.bool)])
        return cls(order, last.nonzero().squeeze(-1))

    def cumulative(self, counts: Tensor, values: Tensor | None = None) -> Tensor:
        """What resamples hold up to the end of each run of equals, (..., G + 1), 0 first: rows, or a sum."""
        held = counts[..., self.order]
        if values is not None:
            held = held * values[self.order]
        sums = held.cumsum(-1)
        if len(self.ends) < counts.shape[-1]:
            sums = sums[..., self.ends]
        return torch.nn.functional.pad(sums, (1, 0))


def _errors_of_surest(counts: Tensor, confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    confidence, correct = as_examples(confidence, correct)
    ranked = Ranked.of(-confidence)
    return ranked.cumulative(counts), ranked.cumulative(counts, 1 - correct)


def _along(places: Tensor, sums: Tensor, at: Tensor) -> Tensor:
    """Sums (..., G + 1), known at rising places (..., G + 1) and spread evenly between, at others (..., K)."""
    end = torch.searchsorted(places.contiguous(), at.contiguous()).clamp(1, places.shape[-1] - 1)
    start = end - 1
    low, high = places.gather(-1, start), places.gather(-1, end)
    share = torch.where(high > low, (at - low) / (high - low), 0.0)
    below = sums.gather(-1, start)
    return below + share * (sums.gather(-1, end) - below)


def _by_bin(values: Tensor, index: Tensor, bins: int) -> Tensor:
    """Each value in its bin's column, (*, bins), 0 elsewhere."""
    return values.new_zeros(*values.shape, bins).scatter(-1, index[..., None], values[..., None])
