r"""The variance that follows the fit: one number for a parameter group, from its learning rates and the training loss.

    v = (λ_0/λ) · κ · S · exp(−q L̄),        at least 1e-5²

S is the sum of the group's learning rates over the steps taken, the longest way that Adam's steps can have carried an
entry. L̄ is the running mean of the training loss at the sampled weights, in nats (each step keeps .95 of it, the start
is corrected for, and a step's loss counts as at most 4 L̄ + 10), so that exp(−L̄) is the geometric mean of the
probability that the sampled model gives to the training answers. There is next to no noise before something has been
learned, and while the rows are not fitted; noise that keeps the rows from being fitted makes itself smaller. λ_0 is the
λ that training began with, so that what steers λ scales the variance.

Every entry of the group has this variance: nothing of it is learned for a single weight. There is no prior, and no
Hessian is kept. S, L̄ and its weight are plain numbers in the group, so that every checkpoint holds them.

Source: our choice (docs/auto.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varlora.ivon.numbers import number_of

VARIANCE_PER_RATE = 0.04
"""κ."""
LOSS_EXPONENT = 4.0
"""q."""
LOSS_DECAY = 0.95
"""What a step keeps of the running mean of the loss."""
LARGEST_LOSS = (4.0, 10.0)
"""A step's loss counts as at most so many times the mean before it and so many nats: no more than one batch in a run
that goes well has, so that a loss of 1e4 stops the noise for tens of steps and not for hundreds."""
SMALLEST_STD = 1e-5

NOT_BEGUN: Mapping[str, float] = {"lr_sum": 0.0, "loss_sum": 0.0, "loss_weight": 0.0}
"""What a parameter group says of the fit before its first step."""


def follow_fit(group: dict[str, Any], loss: float) -> None:
    """Notes a step that was taken.

    Args:
        group: a parameter group; changed.
        loss: the step's training loss, in nats; a number that is not finite is left out, and one that is far above the
            mean so far counts as `LARGEST_LOSS` has it.

    Example:
        >>> group = {"lr": 0.1, **NOT_BEGUN}
        >>> for loss in (2.0, math.nan, 1.0):
        ...     follow_fit(group, loss)
        >>> round(group["lr_sum"], 3), round(mean_loss(group), 4)             # (.95 · 2 + 1) / 1.95
        (0.3, 1.4872)
    """
    group["lr_sum"] += number_of(group["lr"])
    if math.isfinite(loss):
        if (mean := mean_loss(group)) is not None:
            times, nats = LARGEST_LOSS
            loss = min(loss, times * max(mean, 0.0) + nats)
        for name, value in (("loss_sum", loss), ("loss_weight", 1.0)):
            group[name] = LOSS_DECAY * group[name] + (1 - LOSS_DECAY) * value


def mean_loss(group: Mapping[str, Any]) -> float | None:
    """L̄; None before the first loss."""
    weight = float(group["loss_weight"])
    return float(group["loss_sum"]) / weight if weight else None


def fit_variance(group: Mapping[str, Any]) -> float:
    """v of every entry of a parameter group.

    Args:
        group: with λ as "ess" and, once training has begun, λ_0 as "ess_start". A mean loss below 0, which is no
            negative log-likelihood, counts as 0.

    Example:
        >>> group = {"ess": 1e4, "ess_start": 1e4, "lr_sum": 0.5, "loss_sum": 0.05 * math.log(2), "loss_weight": 0.05}
        >>> round(fit_variance(group), 6)                                    # .04 · .5 / 2⁴
        0.00125
        >>> round(fit_variance({**group, "ess": 5e3}), 6)
        0.0025
    """
    loss = mean_loss(group)
    variance = 0.0
    if loss is not None:
        start = group.get("ess_start", group["ess"])
        variance = start / group["ess"] * VARIANCE_PER_RATE * group["lr_sum"] * math.exp(-LOSS_EXPONENT * max(loss, 0))
    return max(float(variance), SMALLEST_STD**2)
