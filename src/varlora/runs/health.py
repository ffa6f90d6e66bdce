"""A run's health, from its posterior, its log and what it predicted for its validation rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varlora.posterior import Mixture, PointMass, Posterior
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import modes_of
from varlora.report.course import course_of
from varlora.report.health import Health, health_of
from varlora.report.health_text import reason_for_the_point
from varlora.report.sampling import ValidationLogProbs

if TYPE_CHECKING:
    from varlora.runs.folder import CompletionScores


UNKNOWN = -100
"""The label of a row that has none, or decides nothing."""


def run_health(
    q: Posterior,
    validation: Mapping[str, Prediction | CompletionScores],
    samples: int,
    log: Sequence[Mapping[str, Any]] = (),
    *,
    deciding_nothing: Sequence[int] = (),
) -> Health:
    """The health of a run.

    Args:
        q: its posterior.
        validation: its predictions for the validation rows by mode; empty if there are none.
        samples: how many draws it predicts with.
        log: the trainer's, one entry per logged step.
        deciding_nothing: numbers of the validation rows that decide nothing, as they are test rows, too.

    Raises:
        ValueError: the predictions of two modes are not of the same rows, or there is no such row.
    """
    course = course_of(log)
    at_mean, own = validation.get("mean"), validation.get(modes_of(q)[-1])
    if at_mean is None:
        return health_of(q, samples=samples, course=course)
    if own is not None and own.ids != at_mean.ids:
        raise ValueError("the validation predictions at the mean and of the draws are not of the same rows.")
    if isinstance(at_mean, Prediction):
        of_draws = own if isinstance(own, Prediction) else None
        log_probs = ValidationLogProbs(
            mean=at_mean.log_probs,
            sampled=of_draws.log_probs if of_draws is not None else None,
            **_that_decide(at_mean.labels, deciding_nothing),
            mean_temperature=at_mean.logit_temperature,
            sampled_temperature=of_draws.logit_temperature if of_draws is not None else 1.0,
        )
    else:  # of one "class" each, the completion that was given
        sampled = None if own is None or isinstance(own, Prediction) else own.log_likelihoods[..., None]
        labels = torch.zeros(len(at_mean.ids), dtype=torch.int64)
        log_probs = ValidationLogProbs(
            mean=at_mean.log_likelihoods[..., None],
            sampled=sampled,
            **_that_decide(labels, deciding_nothing),
        )
    return health_of(q, samples=samples, validation=log_probs, course=course)


def _that_decide(labels: Tensor, deciding_nothing: Sequence[int]) -> dict[str, Any]:
    """The labels of the rows that decide something, and how many others have one."""
    known = labels.clone()
    if strange := [row for row in deciding_nothing if not 0 <= row < len(known)]:
        raise ValueError(f"there is no validation row {strange[0]} among {len(known)}, which should decide nothing.")
    known[list(deciding_nothing)] = UNKNOWN
    return {"labels": known, "reported": int((labels >= 0).sum() - (known >= 0).sum())}


def with_verdict(q: Posterior, health: Health) -> Posterior:
    """The posterior with what its validation rows say of draws, which decides how it is predicted with by default.

    Args:
        q: the posterior as trained.
        health: its health.

    Returns:
        The same with `meta.diagnostics["sampling"]` (`varlora.prediction.prediction_setup.explain_point`). A posterior
        that has no other way to predict (a point mass) or whose way is its method (the members of an ensemble) has
    none."""
    if isinstance(q, (PointMass, Mixture)):
        return q
    said: dict[str, Any] = {"helps": health.verdict == "helps", "why": reason_for_the_point(health)}
    diagnostics = {**(q.meta.diagnostics or {}), "sampling": said}
    return dataclasses.replace(q, meta=dataclasses.replace(q.meta, diagnostics=diagnostics))  # type: ignore[type-var]
