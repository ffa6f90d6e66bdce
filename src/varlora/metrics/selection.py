"""Which of several predictions to take, by their losses on the same rows, without mistaking noise for a gain.

For losses ℓ_k(n) of candidate k on row n, and a default 0, over N rows

    d_k = mean_n [ℓ_k(n) − ℓ_0(n)],     s_k = sd_n [ℓ_k(n) − ℓ_0(n)] / √N      (paired: the rows' luck cancels)

    helpful    d_k + c·s_k < 0, for c standard errors (1 unless told otherwise)
    best       the helpful candidate of lowest mean loss
    chosen     the default if none is helpful; else the simplest of the helpful ones that are no more than c paired
               standard errors worse than the best

Source: the one-standard-error rule of Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984,
Section 3.4.3; here with the standard error of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

FEW_ROWS = 50
"""So many validation rows, and fewer, need two standard errors."""
WORTHWHILE = 0.005
"""Nats of mean NLL. A gain below it is none, however sure: it is half a percent of the probability of the right answer,
less than two seeds of one training differ by, and no ten passes through the model for one are worth it."""


def standard_errors_for(rows: int) -> float:
    """c(N) = 1 + min(1, 50/N): how many standard errors a difference must exceed that N rows are to decide.

    Few rows know their own standard error badly, and what they decide wrongly costs more: two up to 50 rows, 1.5 at
    100, 1.1 at 500. Every choice on validation rows asks for as many.

    Args:
        rows: N, at least 1.

    Raises:
        ValueError: there is no row.

    Example:
        >>> [standard_errors_for(rows) for rows in (6, 50, 100, 500)]
        [2.0, 2.0, 1.5, 1.1]
    """
    if rows < 1:
        raise ValueError(f"{rows} rows decide nothing; give at least 1.")
    return 1 + min(1.0, FEW_ROWS / rows)


def paired_error(losses: Tensor, reference: Tensor) -> tuple[float, float]:
    """The mean paired difference of losses from those of a reference, and its standard error.

    Args:
        losses: (N,), one number per row.
        reference: (N,), for the same rows.

    Returns:
        The mean of `losses - reference`, negative where `losses` are lower, and sd / √N with N − 1 in the variance.

    Raises:
        ValueError: the shapes differ, or there are fewer than two rows.

    Example:
        >>> import torch
        >>> difference, error = paired_error(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 2.0]))
        >>> difference, round(error, 4)
        (1.0, 0.5774)
    """
    if losses.shape != reference.shape or losses.ndim != 1 or len(losses) < 2:
        raise ValueError(
            f"need losses of the same rows, at least two: got {tuple(losses.shape)} and {tuple(reference.shape)}."
        )
    difference = losses.double() - reference.double()
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def one_standard_error(
    losses: Tensor, *, simplicity: Sequence[Any], default: int = 0, standard_errors: float = 1.0
) -> int:
    """The candidate to take: the default, unless another is better by more than noise; then the simplest such.

    Args:
        losses: (K, N), the losses of K candidates on the same N rows. A candidate with an infinite loss is not taken.
        simplicity: K keys that can be ordered; the lowest is the simplest. Equal keys are decided by the mean loss.
        default: the candidate that needs no evidence.
        standard_errors: c, how many paired standard errors a difference must exceed, at least 0.

    Returns:
        The candidate's index.

    Raises:
        ValueError: an argument does not fit, or the default's losses are not finite.

    Example:
        >>> import torch
        >>> default = torch.tensor([1.0, 1.2, 0.8, 1.0])
        >>> lucky = default + torch.tensor([-2.0, 0.5, 0.6, 0.7])                # lower by 0.05 ± 0.65
        >>> better, best = default - 0.3, default - torch.tensor([0.4, 0.2, 0.4, 0.25])
        >>> one_standard_error(torch.stack([default, lucky]), simplicity=[0, 1])
        0
        >>> one_standard_error(torch.stack([default, best, better]), simplicity=[0, 2, 1])
        2
    """
    if losses.ndim != 2 or len(simplicity) != len(losses) or not 0 <= default < len(losses):
        raise ValueError(
            f"need losses (K, N), K keys of simplicity and a default below K: got {tuple(losses.shape)}, "
            f"{len(simplicity)} and {default}."
        )
    if not 0 <= standard_errors < math.inf:
        raise ValueError(f"standard_errors is {standard_errors!r}; it must be a finite number, at least 0.")
    if not bool(losses[default].isfinite().all()):
        raise ValueError("the default's losses are not finite: some row's answer has probability 0.")
    means = losses.double().mean(1)
    helpful = [k for k in range(len(losses)) if k != default and _lower(losses[k], losses[default], standard_errors)]
    if not helpful:
        return default
    best = min(helpful, key=lambda k: float(means[k]))
    as_good = [k for k in helpful if k == best or not_worse(losses[k], losses[best], standard_errors)]
    return min(as_good, key=lambda k: (simplicity[k], float(means[k])))


def not_worse(losses: Tensor, reference: Tensor, standard_errors: float = 1.0) -> bool:
    """Whether losses are above a reference's by no more than some paired standard errors.

    Args:
        losses: (N,).
        reference: (N,), for the same rows.
        standard_errors: how many.

    Example:
        >>> import torch
        >>> not_worse(torch.tensor([1.0, 1.2]), torch.tensor([1.1, 1.0]))        # higher by 0.05 ± 0.15
        True
    """
    difference, error = paired_error(losses, reference)
    return difference <= standard_errors * error  # False for what is not a number


def largest_free(costs: Iterable[tuple[float, Tensor]], reference: Tensor, standard_errors: float = 1.0) -> float:
    """The largest amount that is not worse than nothing; amounts are tried in rising order until one is.

    Args:
        costs: (amount, losses (N,)) in rising order of the amounts; those after the first that is worse are not read.
        reference: (N,), the losses at amount 0.
        standard_errors: by how many paired standard errors an amount may be worse.

    Returns:
        The amount; 0.0 if even the smallest is worse.

    Example:
        >>> import torch
        >>> nothing = torch.tensor([1.0, 1.2, 0.8])
        >>> costs = [(0.1, nothing), (0.2, nothing + 0.1), (0.3, nothing - 1.0)]
        >>> largest_free(costs, nothing)
        0.1
    """
    free = 0.0
    for amount, losses in costs:
        if not not_worse(losses, reference, standard_errors):
            break
        free = amount
    return free


def _lower(losses: Tensor, reference: Tensor, standard_errors: float) -> bool:
    difference, error = paired_error(losses, reference)
    return difference + standard_errors * error < 0
