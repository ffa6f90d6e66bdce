"""Temperature scaling: the logits divided by one number fitted on validation rows.

    T = argmin_T  −(1/N) Σ_n log (1/S) Σ_s softmax(f_s(x_n) / T)[y_n]

for the S draws of a prediction; S = 1 at a point. The cheapest competitor of any posterior, and often a strong one; it
goes on top of every method. At a point, accuracy does not change.

Source: Guo et al. 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import Trainer

from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job
from varlora.metrics import mean_log_probs
from varlora.metrics.scoring import log_losses
from varlora.posterior import Posterior
from varlora.prediction import Prediction, predict

logger = logging.getLogger(__name__)

FOLDS = 5
BOUNDS = (0.01, 100.0)
GRID = 81
"""Temperatures tried before the best bracket is narrowed down."""


@dataclass(frozen=True, kw_only=True)
class Temperature(AdamW):
    """AdamW, then one temperature on the logits by validation NLL.

    Example:
        >>> Temperature.name
        'temperature'
    """

    name: ClassVar[str] = "temperature"

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

    def fit(self, job: Job) -> Fit:
        """AdamW's point mass with the temperature in its meta."""
        fit = super().fit(job)
        assert job.readout is not None
        assert job.validation is not None
        at_point = predict(job.model, fit.posterior, job.batches(job.validation), 0, readout=job.readout)
        scaled = with_temperatures(fit.posterior, {"mean": at_point}, of=f"training in {job.arguments.output_dir}")
        return dataclasses.replace(fit, posterior=scaled)


def with_temperatures(q: Posterior, validation: Mapping[str, Prediction], *, of: str = "") -> Posterior:
    """The posterior with a logit temperature for each mode of prediction.

    Args:
        q: any posterior.
        validation: by mode, predictions for validation rows that no temperature has divided.
        of: what a warning is to name: a run.

    Raises:
        ValueError: a prediction was divided by a temperature, or no temperature can be fitted to it.

    Example:
        >>> from varlora.posterior import PointMass
        >>> logits = torch.tensor([[[2.0, 0.0]]] * 4, dtype=torch.float64)
        >>> prediction = Prediction(log_probs=logits.log_softmax(-1), labels=torch.tensor([0, 0, 0, 1]))
        >>> q = with_temperatures(PointMass(mean={"w": torch.ones(1)}), {"mean": prediction})
        >>> round(q.meta.logit_temperature, 3)
        1.82
    """
    temperatures = {}
    for mode, prediction in validation.items():
        if prediction.logit_temperature != 1.0:
            raise ValueError(
                f"the predictions of mode {mode!r} were divided by {prediction.logit_temperature} already; predict "
                "with logit_temperature=1.0."
            )
        known = prediction.labels >= 0
        temperatures[mode] = fit_temperature(
            prediction.log_probs[known], prediction.labels[known], of=f"{of}, mode {mode}" if of else f"mode {mode}"
        )
    meta = dataclasses.replace(
        q.meta,
        logit_temperature=temperatures.pop("mean", q.meta.logit_temperature),
        logit_temperature_by_mode={**(q.meta.logit_temperature_by_mode or {}), **temperatures} or None,
    )
    return dataclasses.replace(q, meta=meta)  # type: ignore[type-var]


def fit_temperature(logits: Tensor, labels: Tensor, *, warn: bool = True, of: str = "") -> float:
    """The temperature that minimises the mean NLL of the average over draws.

    For one draw the problem is convex in 1/T. For several it need not be: the best of a grid of temperatures is
    narrowed down by bisection on the slope.

    Args:
        logits: (N, C) or, for S draws, (N, S, C), up to a constant per row and draw (log-probabilities will do); -inf
            for choices that do not exist.
        labels: (N,) class indices.
        warn: whether to warn of a bound.
        of: what the warning is to name: whose predictions they are.

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
    if logits.ndim not in (2, 3) or not len(logits) or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"need logits (N, C) or (N, S, C) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    logits = logits if logits.ndim == 3 else logits[:, None]
    if not bool(((labels >= 0) & (labels < logits.shape[2])).all()):
        raise ValueError(f"labels must be in 0..{logits.shape[2] - 1}; rows without a label cannot be used.")
    logits = logits.double()
    rows = torch.arange(len(labels))
    if not bool((logits[rows, :, labels] > -torch.inf).all()) or bool(logits.isnan().any()):
        raise ValueError("some row's label has logit -inf or NaN; no temperature can make it likely.")

    finite = logits.masked_fill(torch.isinf(logits), 0.0)

    def loss_and_slope(inverse: float) -> tuple[float, float]:
        """The mean NLL, and its derivative with respect to 1/T: −Σ_s w_s (logit of the label − E_s[logit])."""
        log_probs = torch.log_softmax(logits * inverse, dim=-1)
        of_label = log_probs[rows, :, labels]
        rise = finite[rows, :, labels] - (log_probs.exp() * finite).sum(-1)
        loss = -torch.logsumexp(of_label, dim=1).mean()
        return float(loss), -float((of_label.softmax(1) * rise).sum(1).mean())

    low, high = BOUNDS
    grid: list[float] = [low * (high / low) ** (i / (GRID - 1)) for i in range(GRID)]
    best = min(range(GRID), key=lambda i: loss_and_slope(1 / grid[i])[0])
    if best in (0, GRID - 1):
        bound = low if best == 0 else high
        if warn:
            whose = f"{of}: " if of else ""
            logger.warning(
                "%sthe temperature that minimises the validation NLL lies beyond %g; using %g", whose, bound, bound
            )
        return bound
    left, right = 1 / grid[best + 1], 1 / grid[best - 1]
    for _ in range(100):  # bisection on the slope, which rises through 0 between the neighbours
        middle = math.sqrt(left * right)
        left, right = (left, middle) if loss_and_slope(middle)[1] > 0 else (middle, right)
    return 1 / right


def cross_fitted(logits: Tensor, labels: Tensor, *, folds: int = FOLDS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The loss of every row under a temperature that was fitted to the other folds' rows.

    What a temperature gains on the rows that it was fitted to is a little too good; this is not.

    Args:
        logits: (N, S, C), as for `fit_temperature`.
        labels: (N,) class indices.
        folds: K, at most N; the rows are dealt out at random, so that their order does not matter.
        seed: decides how.

    Returns:
        The losses (N,) in nats, and the temperature that each row was divided by (N,), float64.

    Raises:
        ValueError: `folds` is out of its range, or as `fit_temperature`.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]]]).repeat(40, 1, 1)
        >>> losses, temperatures = cross_fitted(logits, torch.tensor([0, 0, 0, 1] * 10))
        >>> bool(losses.mean() > math.log(4) - 0.75 * math.log(3))     # the loss of the T fitted to all rows
        True
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds is {folds} for {len(labels)} rows; it must lie between 2 and their number.")
    dealt = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % folds
    temperatures = torch.empty(len(labels), dtype=torch.float64)
    for fold in range(folds):
        held_out = dealt == fold
        temperatures[held_out] = fit_temperature(logits[~held_out], labels[~held_out], warn=False)
    divided = torch.log_softmax(logits.double() / temperatures[:, None, None], dim=-1)
    return log_losses(mean_log_probs(divided), labels), temperatures
