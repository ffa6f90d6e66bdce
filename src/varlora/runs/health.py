"""A run's health, from its posterior and what it predicted for its validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from varlora.posterior import Posterior
from varlora.prediction import Prediction, modes_of
from varlora.report.health import Health, ValidationLogProbs, health_of

if TYPE_CHECKING:
    from varlora.runs.folder import CompletionScores

SPLIT = "validation"
"""The only split that is looked at."""


def run_health(q: Posterior, validation: Mapping[str, Prediction | CompletionScores], samples: int) -> Health:
    """The health of a run.

    Args:
        q: its posterior.
        validation: its predictions for the validation rows by mode; empty if there are none.
        samples: how many draws it predicts with.

    Raises:
        ValueError: the predictions of two modes are not of the same rows.
    """
    at_mean, own = validation.get("mean"), validation.get(modes_of(q)[-1])
    if at_mean is None:
        return health_of(q, samples=samples)
    if own is not None and own.ids != at_mean.ids:
        raise ValueError("the validation predictions at the mean and of the draws are not of the same rows.")
    if isinstance(at_mean, Prediction):
        sampled = own.log_probs if isinstance(own, Prediction) else None
        found = ValidationLogProbs(mean=at_mean.log_probs, sampled=sampled, labels=at_mean.labels)
    else:  # of one "class" each, the completion that was given
        sampled = None if own is None or isinstance(own, Prediction) else own.log_likelihoods[..., None]
        labels = torch.zeros(len(at_mean.ids), dtype=torch.int64)
        found = ValidationLogProbs(mean=at_mean.log_likelihoods[..., None], sampled=sampled, labels=labels)
    return health_of(q, samples=samples, validation=found)
