"""Does a confidence of 80 % mean that 80 % are right? Calibration errors, and the bins behind their diagram.

Bin i of B is (lo, hi] = ((i-1)/B, i/B]; 0 itself is in the first bin. The code is ours because other libraries bin
[lo, hi), give confidence 1.0 a bin of its own or cast to float32: where confidences lie on edges, as those of a
saturated model do, that is off by as much as .08.

All functions take confidence (..., N) and correct (..., N), and treat leading dimensions as a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varlora.metrics.inputs import as_examples, as_float64, as_labels
from varlora.metrics.ranking import shared_by_equals

ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One bar of a reliability diagram: the `count` examples whose confidence is in (lower, upper].

    `confidence` and `accuracy` are the means over them, NaN if there are none.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> tuple[ReliabilityBin, ...]:
    """The equal-width bins of a reliability diagram, lowest first, empty ones included.

    Args:
        confidence: (N,) probabilities of the predicted classes.
        correct: (N,) whether each prediction was right.
        bins: Number of bins B.

    Example:
        >>> import torch
        >>> low, high = reliability_bins(torch.tensor([0.5, 0.75, 1.0]), torch.tensor([1, 0, 1]), bins=2)
        >>> (low.count, low.accuracy), (high.count, high.confidence, high.accuracy)
        ((1, 1.0), (2, 0.875, 0.5))
    """
    confidence, correct = checked_confidence(confidence, correct, bins)
    if confidence.dim() != 1:
        raise ValueError(f"a diagram shows one set of examples (N,), not {tuple(confidence.shape)}.")
    index = bin_index(confidence, bins)
    counts = _sum_by_bin(torch.ones_like(confidence), index, bins)
    columns = (counts, _sum_by_bin(confidence, index, bins) / counts, _sum_by_bin(correct, index, bins) / counts)
    return tuple(
        ReliabilityBin(
            lower=i / bins, upper=(i + 1) / bins, count=int(count), confidence=mean_confidence, accuracy=accuracy
        )
        for i, (count, mean_confidence, accuracy) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    """ECE = sum over bins of n_i / N · |accuracy_i - mean confidence_i|, equal-width bins (lo, hi].

    Args:
        confidence: (..., N) probabilities of the predicted classes, in [0, 1].
        correct: (..., N) whether each prediction was right.
        bins: Number of bins B.

    Returns:
        (...,) in [0, 1].

    Raises:
        ValueError: If shapes differ, N is 0, a confidence is outside [0, 1], or `bins` is not positive.

    Example:
        >>> import torch
        >>> float(expected_calibration_error(torch.tensor([0.75, 0.75, 1.0, 1.0]), torch.tensor([1, 0, 1, 1])))
        0.125

    Source: Guo et al., arXiv:1706.04599, section 2.
    """
    confidence, correct = checked_confidence(confidence, correct, bins)
    gaps = _sum_by_bin(correct - confidence, bin_index(confidence, bins), bins)
    return gaps.abs().sum(-1) / confidence.shape[-1]


def maximum_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    """MCE: the largest |accuracy_i - mean confidence_i| over the non-empty bins, however few are in them.

    Arguments, result and errors as of `expected_calibration_error`.

    Example:
        >>> import torch
        >>> float(maximum_calibration_error(torch.tensor([0.75, 0.75, 1.0, 1.0]), torch.tensor([1, 0, 1, 1])))
        0.25

    Source: Guo et al., arXiv:1706.04599, section 2.
    """
    confidence, correct = checked_confidence(confidence, correct, bins)
    index = bin_index(confidence, bins)
    gaps = _sum_by_bin(correct - confidence, index, bins)
    counts = _sum_by_bin(torch.ones_like(confidence), index, bins)
    return (gaps.abs() / counts.clamp(min=1)).amax(-1)


def equal_mass_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    """ECE whose bins hold equally many examples, so that none is nearly empty.

    The examples are sorted by confidence and cut into B groups; the first N mod B groups have one member more. Equally
    confident examples share their right answers out evenly over the groups that they fall into (the mean over all their
    orders), so that the error does not depend on the order of the file. Arguments, result and errors as of
    `expected_calibration_error`.

    Example:
        >>> import torch
        >>> p, right = torch.tensor([0.5, 0.75, 0.75, 1.0]), torch.tensor([1, 0, 1, 1])
        >>> float(equal_mass_calibration_error(p, right, bins=2))
        0.125
        >>> tied, half_right = torch.full((4,), 0.5), torch.tensor([1, 1, 0, 0])
        >>> float(equal_mass_calibration_error(tied, half_right, bins=2))
        0.0

    Source: Nixon et al., arXiv:1904.01685 (adaptive calibration error, of the predicted class).
    """
    confidence, correct = checked_confidence(confidence, correct, bins)
    num_examples = confidence.shape[-1]
    confidence, order = confidence.sort(dim=-1)
    correct = shared_by_equals(confidence, correct.gather(-1, order))
    group = torch.arange(bins).repeat_interleave(equal_masses(num_examples, bins)).expand_as(confidence)
    gaps = _sum_by_bin(correct - confidence, group, bins)
    return gaps.abs().sum(-1) / num_examples


def classwise_calibration_error(probs: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Mean over the classes c of the ECE of p_c as the probability that the label is c.

    Args:
        probs: (..., N, C) probabilities.
        labels: (..., N) class indices.
        bins: Number of equal-width bins B.

    Example:
        >>> import torch
        >>> float(classwise_calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1])))
        0.25

    Source: Kull et al., arXiv:1910.12656 (classwise-ECE).
    """
    probs = as_float64(probs)
    is_class = as_labels(labels, probs).unsqueeze(-1) == torch.arange(probs.shape[-1])
    return expected_calibration_error(probs.mT.contiguous(), is_class.mT, bins=bins).mean(-1)


def equal_masses(num_examples: int, bins: int) -> Tensor:
    """How many examples are in each of B groups, (B,): the first N mod B have one more."""
    return torch.tensor([num_examples // bins + (i < num_examples % bins) for i in range(bins)])


def checked_confidence(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Confidence and correctness (..., N) in float64, for so many bins.

    Raises:
        ValueError: as of `expected_calibration_error`.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}: give a positive number, e.g. 15.")
    confidence, correct = as_examples(confidence, correct)
    if confidence.min() < -ROUNDING or confidence.max() > 1 + ROUNDING:
        raise ValueError(
            f"confidences lie between {float(confidence.min()):.6g} and {float(confidence.max()):.6g}: "
            "give probabilities, in [0, 1]."
        )
    return confidence, correct


def bin_index(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence, from 0."""
    # k / bins, correctly rounded, is the float a user writes for that edge; k * (1 / bins) need not be.
    inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
    return torch.bucketize(confidence, inner_edges)


def _sum_by_bin(values: Tensor, index: Tensor, bins: int) -> Tensor:
    return values.new_zeros(*values.shape[:-1], bins).scatter_add(-1, index, values)
