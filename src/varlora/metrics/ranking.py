"""Does a score put the right examples first? AUROC, FPR95, and accuracy when the least sure may be left out.

All functions take (..., N) and treat leading dimensions as a batch.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from varlora.metrics.inputs import as_examples


def auroc(score: Tensor, positive: Tensor) -> Tensor:
    """Probability that a positive example scores higher than a negative one; a tie counts one half.

    Args:
        score: (..., N) finite; higher means more likely positive (out of distribution, wrong, ...).
        positive: (..., N) which examples are positive.

    Returns:
        (...,) in [0, 1]; NaN where all examples, or none, are positive.

    Raises:
        ValueError: If shapes differ, N is 0 or a score is not finite.

    Example:
        >>> import torch
        >>> float(auroc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1])))
        0.875
    """
    score, positive = as_examples(score, positive, name="score")
    # Positives are sent to +inf, beyond the reach of every score: what is counted below is negatives only.
    negatives = torch.where(positive == 1, math.inf, score).sort(dim=-1).values
    wins = torch.searchsorted(negatives, score.contiguous()) + torch.searchsorted(
        negatives, score.contiguous(), right=True
    )
    num_positive = positive.sum(-1)
    return (wins * positive).sum(-1) / (2 * num_positive * (positive.shape[-1] - num_positive))


def fpr95(score: Tensor, positive: Tensor) -> Tensor:
    """The smallest false-positive rate of a threshold that finds at least 95 % of the positives.

    An example is called positive when its score >= threshold. Arguments, result and errors as of `auroc`.

    Example:
        >>> import torch
        >>> float(fpr95(torch.tensor([0.1, 0.5, 0.4, 0.8]), torch.tensor([0, 0, 1, 1])))
        0.5
    """
    score, positive = as_examples(score, positive, name="score")
    num_positive = positive.sum(-1, keepdim=True)
    needed = (95 * num_positive.long() + 99) // 100  # ceil, in integers
    positives = torch.where(positive == 1, score, -math.inf).sort(dim=-1, descending=True).values
    threshold = positives.gather(-1, (needed - 1).clamp(min=0))
    false_positives = ((score >= threshold) * (1 - positive)).sum(-1)
    rate = false_positives / (positive.shape[-1] - num_positive.squeeze(-1))
    return torch.where(num_positive.squeeze(-1) > 0, rate, math.nan)


def risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """The risk-coverage curve: the error rate among the k most confident examples, for k = 1..N.

    Equally confident examples share their errors out evenly (the mean over all their orders), so that the curve
    does not depend on the order of the file.

    Args:
        confidence: (..., N) finite; higher is surer.
        correct: (..., N) whether each prediction was right.

    Returns:
        Coverage k/N, (N,), and risk, (..., N).

    Raises:
        ValueError: If shapes differ, N is 0 or a confidence is not finite.

    Example:
        >>> import torch
        >>> coverage, risk = risk_coverage(torch.tensor([0.9, 0.6, 0.8, 0.7]), torch.tensor([1, 0, 1, 0]))
        >>> coverage.tolist(), [round(r, 3) for r in risk.tolist()]
        ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.333, 0.5])

    Source: Geifman & El-Yaniv, arXiv:1705.08500, section 2.
    """
    confidence, correct = as_examples(confidence, correct)
    doubt, order = (-confidence).sort(dim=-1)
    shared = shared_by_equals(doubt, 1 - correct.gather(-1, order))
    count = torch.arange(1, confidence.shape[-1] + 1, dtype=torch.float64)
    return count / count[-1], shared.cumsum(-1) / count


def aurc(confidence: Tensor, correct: Tensor) -> Tensor:
    """Area under the risk-coverage curve: the mean of its risks over k = 1..N; lower is better.

    Arguments and errors as of `risk_coverage`; returns (...,).

    Example:
        >>> import torch
        >>> round(float(aurc(torch.tensor([0.9, 0.6, 0.8, 0.7]), torch.tensor([1, 0, 1, 0]))), 6)
        0.208333

    Source: Geifman et al., arXiv:1805.08206.
    """
    return risk_coverage(confidence, correct)[1].mean(-1)


def accuracy_at_coverage(confidence: Tensor, correct: Tensor, *, coverage: float) -> Tensor:
    """Accuracy among the ceil(coverage · N) most confident examples.

    Args:
        confidence: (..., N) finite; higher is surer.
        correct: (..., N) whether each prediction was right.
        coverage: Fraction of the examples that are answered, in (0, 1].

    Example:
        >>> import torch
        >>> float(accuracy_at_coverage(torch.tensor([0.9, 0.6, 0.8]), torch.tensor([1, 0, 1]), coverage=0.5))
        1.0
    """
    risk = risk_coverage(confidence, correct)[1]
    return 1 - risk[..., number_kept(coverage, risk.shape[-1]) - 1]


def number_kept(coverage: float, num_examples: int) -> int:
    """How many examples are answered at a coverage: ceil(coverage · N).

    Example:
        >>> number_kept(0.55, 100)                                            # ceil(0.55 * 100) is 56 in floating point
        55
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage}: give the fraction that is answered, in (0, 1], e.g. 0.9.")
    return math.ceil(Fraction(coverage).limit_denominator(10**6) * num_examples)


def shared_by_equals(ascending: Tensor, values: Tensor) -> Tensor:
    """Each value replaced by the mean over all those whose key is equal: the mean over all orders of the equals.

    Args:
        ascending: (..., N) keys in ascending order.
        values: (..., N), in the keys' order.

    Example:
        >>> import torch
        >>> shared_by_equals(torch.tensor([0.5, 0.5, 0.9]), torch.tensor([1.0, 0.0, 1.0])).tolist()
        [0.5, 0.5, 1.0]
    """
    before = torch.cat([torch.zeros_like(values[..., :1]), values.cumsum(-1)], dim=-1)
    start = torch.searchsorted(ascending, ascending)  # of the run of equals
    end = torch.searchsorted(ascending, ascending, right=True)
    return (before.gather(-1, end) - before.gather(-1, start)) / (end - start)
