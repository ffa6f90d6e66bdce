"""What the metrics accept, and the errors that say why something is refused.

Everything becomes float64 on the CPU here, once; the formulas of the other files assume it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of float32 probabilities over a few thousand classes sum to 1 well within this.
SUM_TOLERANCE = 1e-4


def as_examples(values: Tensor, outcomes: Tensor, *, name: str = "confidence") -> tuple[Tensor, Tensor]:
    """Checks one value and one yes/no outcome per example and returns both as float64.

    Args:
        values: (..., N) finite numbers.
        outcomes: (..., N), booleans or 0 and 1.
        name: What `values` are, for the error messages.

    Raises:
        ValueError: If the shapes differ, N is 0, a value is not finite or an outcome is neither 0 nor 1.
    """
    if values.shape != outcomes.shape or values.dim() == 0:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} and its outcomes {tuple(outcomes.shape)}: "
            "give two tensors of the same shape (..., N)."
        )
    if values.shape[-1] == 0:
        raise ValueError(f"{name} holds no examples: a metric needs at least one.")
    values, outcomes = as_float64(values), as_float64(outcomes)
    if not values.isfinite().all():
        raise ValueError(f"{name} holds {int((~values.isfinite()).sum())} values that are NaN or infinite.")
    if not ((outcomes == 0) | (outcomes == 1)).all():
        raise ValueError(f"the outcomes that go with {name} must be booleans, or 0 and 1.")
    return values, outcomes


def as_float64(values: Tensor) -> Tensor:
    """Returns `values` detached, on the CPU, in float64 (which some devices do not have)."""
    return values.detach().cpu().to(torch.float64)


def as_predictions(predictions: Tensor) -> tuple[Tensor, bool]:
    """Checks probabilities or log-probabilities, and tells which they are.

    Args:
        predictions: Either (N, C) probabilities, or (N, C) or (N, S, C) natural log-probabilities, S being
            the number of posterior samples. A log-probability of -inf is a choice that does not exist.

    Returns:
        The same numbers in float64, and whether they are logs.

    Raises:
        ValueError: If the numbers are neither, are half precision, or there is no example.
    """
    shape = tuple(predictions.shape)
    if predictions.dim() not in (2, 3) or 0 in shape:
        raise ValueError(
            f"predictions have shape {shape}: give probabilities (N, C), log-probabilities (N, C), or "
            "log-probabilities of S samples (N, S, C), none of N, S and C being 0."
        )
    if predictions.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"predictions are {predictions.dtype}: give float32 or float64, e.g. "
            "`logits.float().log_softmax(-1)`; half-precision probabilities are too coarse to be measured."
        )
    values = as_float64(predictions)
    if values.isnan().any() or values.isposinf().any():
        bad = values.isnan() | values.isposinf()
        raise ValueError(f"predictions hold {int(bad.sum())} values that are NaN or +inf.")
    # A log-probability is negative somewhere (zero only for a certain answer); a probability never is.
    certain = shape[-1] == 1 and not values.any()
    is_log = values.dim() == 3 or certain or bool((values < 0).any())
    totals = values.exp().sum(-1) if is_log else values.sum(-1)
    worst = totals.flatten()[(totals - 1).abs().argmax()].item()
    if abs(worst - 1) > SUM_TOLERANCE:
        reading = "log-probabilities (their exponentials" if is_log else "probabilities (they"
        raise ValueError(
            f"predictions read as {reading} should sum to 1 in every row), but a row sums to {worst:.6g}. "
            "Give logits as `logits.log_softmax(-1)`, and several samples as log-probabilities (N, S, C)."
        )
    return (values.clamp(max=0.0) if is_log else values), is_log


def as_labels(labels: Tensor, probs: Tensor) -> Tensor:
    """Checks class indices (..., N) against predictions (..., N, C); returns them as int64 on the CPU.

    Raises:
        ValueError: If they are not integers in 0..C-1, one per prediction; unknown (negative) ones are counted.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}: give class indices, int64.")
    if labels.shape != probs.shape[:-1] or labels.numel() == 0:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but predictions {tuple(probs.shape)} need "
            f"{tuple(probs.shape[:-1])}, and at least one."
        )
    labels = labels.detach().cpu().to(torch.int64)
    if unknown := int((labels < 0).sum()):
        raise ValueError(
            f"{unknown} of {labels.numel()} labels are unknown (negative, e.g. {int(labels.min())}): "
            "keep the rows that can be judged, `known = labels >= 0; evaluate(predictions[known], labels[known])`."
        )
    if (top := int(labels.max())) >= probs.shape[-1]:
        raise ValueError(
            f"a label is {top}, but the predictions have {probs.shape[-1]} classes, 0 to {probs.shape[-1] - 1}."
        )
    return labels
