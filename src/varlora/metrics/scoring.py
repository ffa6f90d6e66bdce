"""How good the predicted probabilities are: accuracy and the two proper scoring rules.

Leading dimensions of every argument are a batch: (..., N, C) with (..., N) gives (...,). All raise ValueError for
labels that are unknown (negative), out of range or of another shape.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from varlora.metrics.inputs import as_float64, as_labels


def confidence_and_correct(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the most likely class, and whether that class is the label.

    Of equally likely classes the lowest index is the answer.

    Args:
        probs: (..., N, C) probabilities.
        labels: (..., N) class indices.

    Returns:
        Confidence (..., N) in float64, and correct (..., N) as bool: the input of the metrics of calibration
        and ranking.
    """
    confidence, answer = as_float64(probs).max(-1)
    return confidence, answer == as_labels(labels, probs)


def accuracy(probs: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the examples whose most likely class is the label.

    Args:
        probs: (..., N, C) probabilities (or anything that orders the classes the same way).
        labels: (..., N) class indices.

    Example:
        >>> import torch
        >>> float(accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1])))
        0.5
    """
    return confidence_and_correct(probs, labels)[1].double().mean(-1)


def log_losses(log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of every example, in nats: (..., N, C), (..., N) -> (..., N).

    A label of probability 0 costs +inf. Nothing is clipped: a clipped loss would measure the clip.
    """
    picked = as_float64(log_probs).gather(-1, as_labels(labels, log_probs).unsqueeze(-1)).squeeze(-1)
    return 0.0 - picked  # not -picked, which turns 0 into -0


def nll(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats; +inf if any label has probability 0.

    Args:
        log_probs: (..., N, C) natural log-probabilities, so that a tiny probability does not become 0.
        labels: (..., N) class indices.

    Example:
        >>> import torch
        >>> round(float(nll(torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([0, 0]))), 6)
        1.039721
    """
    return log_losses(log_probs, labels).mean(-1)


def brier_scores(probs: Tensor, labels: Tensor) -> Tensor:
    """Squared distance between p and the one-hot label, per example: (..., N, C), (..., N) -> (..., N)."""
    probs = as_float64(probs)
    return (probs - one_hot(as_labels(labels, probs), probs.shape[-1])).square().sum(-1)


def brier(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples of sum_c (p_c - [c = label])², over all classes: between 0 and 2.

    Args:
        probs: (..., N, C) probabilities.
        labels: (..., N) class indices.

    Example:
        >>> import torch
        >>> round(float(brier(torch.tensor([[0.75, 0.25]]), torch.tensor([1]))), 6)
        1.125

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    return brier_scores(probs, labels).mean(-1)
