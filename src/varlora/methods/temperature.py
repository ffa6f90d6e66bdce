"""Temperature scaling: AdamW's point, its logits divided by one number fitted on validation rows.

    T = argmin_T  −(1/N) Σ_n log softmax(f(x_n) / T)[y_n]

The cheapest competitor of any posterior, and often a strong one. Accuracy does not change.

Source: Guo et al. 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer

from varlora.methods.adamw import AdamW
from varlora.methods.method import AnyPosterior, Job
from varlora.prediction import Prediction

logger = logging.getLogger(__name__)

BOUNDS = (0.01, 100.0)


@dataclass(frozen=True, kw_only=True)
class Temperature(AdamW):
    """AdamW, then one temperature on the logits by validation NLL.

    Example:
        >>> Temperature.name
        'temperature'
    """

    name: ClassVar[str] = "temperature"
    summary: ClassVar[str] = "AdamW with one temperature on the logits, fitted on validation rows"

    def trainer(self, job: Job) -> Trainer:
        """AdamW's trainer, if there will be something to fit the temperature on.

        Raises:
            ValueError: the task has no classes, or no validation rows.
        """
        if job.readout is None:
            raise ValueError("method 'temperature' scales the logits of classes; completions have none. Use 'adamw'.")
        if job.validation is None:
            raise ValueError("method 'temperature' is fitted on validation rows; give some, or use 'adamw'.")
        return super().trainer(job)

    def calibrate(self, q: AnyPosterior, validation: Prediction) -> AnyPosterior:
        """Fits the temperature and records it as `meta.logit_temperature`."""
        temperature = fit_temperature(validation.log_probs[:, 0], validation.labels)
        return dataclasses.replace(q, meta=dataclasses.replace(q.meta, logit_temperature=temperature))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the mean NLL; the problem is convex in 1/T.

    Args:
        logits: (N, C), up to a constant per row (log-probabilities will do); -inf for choices that do not exist.
        labels: (N,) class indices.

    Returns:
        T in [0.01, 100]; a bound is returned, with a warning, when the NLL still falls there (when every label is
        the argmax, the best T is 0).

    Raises:
        ValueError: no row, a label outside 0..C-1 or of a choice that does not exist, or a logit that is NaN.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)      # log-odds 2 / T must be log 3
        1.8205

    Source: arXiv 1706.04599, Section 4.2.
    """
    if logits.ndim != 2 or not len(logits) or labels.shape != logits.shape[:1]:
        raise ValueError(f"need logits (N, C) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}.")
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise ValueError(f"labels must be in 0..{logits.shape[1] - 1}; rows without a label cannot be used.")
    logits = logits.double()
    if not bool((logits.gather(1, labels[:, None]) > -torch.inf).all()) or bool(logits.isnan().any()):
        raise ValueError("some row's label has logit -inf or NaN; no temperature can make it likely.")

    def slope(inverse: float) -> float:
        """Derivative of the mean NLL with respect to 1/T: mean of E_p[logit] − logit of the label."""
        log_probs = F.log_softmax(logits * inverse, dim=1)
        finite = logits.masked_fill(torch.isinf(logits), 0.0)
        expected = (log_probs.exp() * finite).sum(1)
        return float((expected - finite.gather(1, labels[:, None]).squeeze(1)).mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if slope(low) >= 0 or slope(high) <= 0:
        bound = BOUNDS[1] if slope(low) >= 0 else BOUNDS[0]
        logger.warning("the temperature that minimises the validation NLL lies beyond %g; using %g", bound, bound)
        return bound
    for _ in range(100):  # bisection on a rising function
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / high
