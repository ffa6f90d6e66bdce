"""How unsure a posterior is, and why: entropies in nats, from log-probabilities (..., S, C) of S samples.

    predictive entropy H(mean_s p_s)  =  expected entropy mean_s H(p_s)  +  mutual information
    (total)                              (the data are ambiguous)           (the samples disagree)

Everything is float64, with 0 log 0 = 0: a log-probability of -inf is a choice that does not exist.

Source: Depeweg et al., arXiv:1710.07283; Houlsby et al., arXiv:1112.5745, equation 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varlora.metrics.inputs import as_float64


def mean_log_probs(log_probs: Tensor) -> Tensor:
    """Log of the average of the samples' probabilities: (..., S, C) -> (..., C).

    Example:
        >>> import torch
        >>> average = mean_log_probs(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()).exp()
        >>> [round(p, 6) for p in average.tolist()]
        [0.75, 0.25]
    """
    mean = as_float64(log_probs).logsumexp(-2) - math.log(log_probs.shape[-2])
    return mean.clamp(max=0.0)  # rounding may put a certain answer above 1


def entropy(log_probs: Tensor) -> Tensor:
    """-sum_c p_c log p_c: (..., C) -> (...,).

    Example:
        >>> import torch
        >>> round(float(entropy(torch.tensor([0.5, 0.5, 0.0]).log())), 6)
        0.693147
    """
    of_classes: Tensor = torch.special.entr(as_float64(log_probs).exp())
    return of_classes.sum(-1)


def predictive_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the averaged probabilities: (..., S, C) -> (...,). Total uncertainty."""
    return entropy(mean_log_probs(log_probs))


def expected_entropy(log_probs: Tensor) -> Tensor:
    """Average of the samples' entropies: (..., S, C) -> (...,). What remains if the weights were known."""
    return entropy(log_probs).mean(-1)


def mutual_information(log_probs: Tensor) -> Tensor:
    """Predictive minus expected entropy: (..., S, C) -> (...,). What knowing the weights would tell.

    Never negative (Jensen); a rounding error below 0 is returned as 0.

    Example:
        >>> import torch
        >>> samples = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]]).log()
        >>> [round(value, 6) for value in mutual_information(samples).tolist()]
        [0.693147, 0.0]
    """
    return (predictive_entropy(log_probs) - expected_entropy(log_probs)).clamp(min=0.0)
