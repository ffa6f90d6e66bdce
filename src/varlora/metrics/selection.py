"""Which of several predictions to take, by their losses on the same rows, without mistaking noise for a gain.

For losses ℓ_k(n) of candidate k on row n, and a default 0, over N rows

    d_k = mean_n [ℓ_k(n) − ℓ_0(n)],     s_k = sd_n [ℓ_k(n) − ℓ_0(n)] / √N      (paired: the rows' luck cancels)

    c(N)       1 + min(1, 50/N): two standard errors up to 50 rows, one of many, and no cliff between
    c(N, M)    F(−c(N, M)) = F(−c(N)) / M, F Student's with N − 1: the same chance for the luckiest of M candidates
    M          1 + (K − 1) (1 − var(eigenvalues) / K) of the correlations of the K candidates' differences: K where
               they are independent, 1 where they are copies of each other
    helpful    d_k + c(N, M)·s_k < 0 and d_k < −WORTHWHILE
    best       the helpful candidate of lowest mean loss
    chosen     the default if none is helpful; else the simplest of the helpful ones that are no more than c(N) paired
               standard errors worse than the best
    free       d_k + c(N)·s_k ≤ WORTHWHILE: even the pessimist's cost is too small to matter. Few rows cannot show that,
               so they free nothing

Every number that validation rows choose is chosen so, but T (`varlora.metrics.temperature`) and the thresholds that
come with a guarantee of their own (`varlora.metrics.conformal`).

Source: the one-standard-error rule of Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984,
Section 3.4.3, here with the standard error of the paired difference; M: Nyholt 2004, "A simple correction for multiple
testing for single-nucleotide polymorphisms in linkage disequilibrium with each other". c(N) and WORTHWHILE are our
choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

FEWEST_ROWS = 20
"""Fewer validation rows cannot tell a gain from noise: nothing is chosen on them, and nothing said of sampling."""
FEW_ROWS = 50
"""So many validation rows, and fewer, need two standard errors."""
WORTHWHILE = 0.005
"""Nats of mean NLL. A gain below it is none, however sure: it is half a percent of the probability of the right answer,
less than two seeds of one training differ by, and no ten passes through the model for one are worth it."""


def standard_errors_for(rows: int, candidates: float = 1.0) -> float:
    """c(N, M): how many standard errors a difference must exceed that N rows are to decide, as the best of M.

    Few rows know their own standard error badly, and what they decide wrongly costs more: two up to 50 rows, 1.5 at
    100, 1.1 at 500. Every choice on validation rows asks for as many.

    Args:
        rows: N, at least 1.
        candidates: M, at least 1, how many independent ones the best is taken of.

    Raises:
        ValueError: there is no row, or no candidate.

    Example:
        >>> [standard_errors_for(rows) for rows in (6, 50, 100, 500)]
        [2.0, 2.0, 1.5, 1.1]
        >>> round(standard_errors_for(50, candidates=5), 2)
        2.67
    """
    if rows < 1 or not candidates >= 1:
        raise ValueError(f"{rows} rows and {candidates} candidates decide nothing; give at least 1 of each.")
    one = 1 + min(1.0, FEW_ROWS / rows)
    freedom = max(1, rows - 1)
    return one if candidates == 1 else -float(stdtrit(freedom, stdtr(freedom, -one) / candidates))


def independent(losses: Tensor, reference: Tensor) -> float:
    """M: as how many independent candidates several count, by the correlations of their paired differences.

    Args:
        losses: (K, N), of candidates; those with an infinite loss, or without a difference, do not count.
        reference: (N,), for the same rows.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
        >>> independent(rows, torch.zeros(4)), round(independent(rows[[0, 0, 0]], torch.zeros(4)), 9)
        (2.0, 1.0)
    """
    differences = losses.double() - reference.double()
    if len(differences) < 2:
        return 1.0
    spread = differences.std(1)
    counted = differences[spread.isfinite() & (spread > 0)]
    if len(counted) < 2:
        return 1.0
    eigenvalues = torch.linalg.eigvalsh(torch.corrcoef(counted))
    return max(1.0, 1 + (len(counted) - 1) * (1 - float(eigenvalues.var()) / len(counted)))


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
    losses: Tensor,
    *,
    simplicity: Sequence[Any],
    default: int = 0,
    standard_errors: float | None = None,
    worthwhile: float = WORTHWHILE,
) -> int:
    """The candidate to take: the default, unless another is worth more, and more than noise; then the simplest such.

    Args:
        losses: (K, N), the losses of K candidates on the same N rows. A candidate with an infinite loss is not taken.
        simplicity: K keys that can be ordered; the lowest is the simplest. Equal keys are decided by the mean loss.
        default: the candidate that needs no evidence.
        standard_errors: how many paired standard errors a difference must exceed, at least 0; None: c(N, M) to be
            helpful, and c(N) to be worse than the best.
        worthwhile: the gain of a candidate that is taken is larger, at least 0, in the losses' unit.

    Returns:
        The candidate's index.

    Raises:
        ValueError: an argument does not fit, or the default's losses are not finite.

    Example:
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
    for name, value in (("standard_errors", standard_errors), ("worthwhile", worthwhile)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a finite number, at least 0.")
    if not bool(losses[default].isfinite().all()):
        raise ValueError("the default's losses are not finite: some row's answer has probability 0.")
    means = losses.double().mean(1)
    others, rows = [k for k in range(len(losses)) if k != default], losses.shape[1]
    needed, apart = standard_errors, standard_errors
    if needed is None or apart is None:
        needed = standard_errors_for(rows, independent(losses[others], losses[default]))
        apart = standard_errors_for(rows)
    helpful = [k for k in others if _lower(losses[k], losses[default], needed, worthwhile)]
    if not helpful:
        return default
    best = min(helpful, key=lambda k: float(means[k]))
    as_good = [k for k in helpful if k == best or not_worse(losses[k], losses[best], apart)]
    return min(as_good, key=lambda k: (simplicity[k], float(means[k])))


def not_worse(losses: Tensor, reference: Tensor, standard_errors: float = 1.0) -> bool:
    """Whether losses are above a reference's by no more than some paired standard errors.

    Args:
        losses: (N,).
        reference: (N,), for the same rows.
        standard_errors: how many.

    Example:
        >>> not_worse(torch.tensor([1.0, 1.2]), torch.tensor([1.1, 1.0]))        # higher by 0.05 ± 0.15
        True
    """
    difference, error = paired_error(losses, reference)
    return difference <= standard_errors * error  # False for what is not a number


def is_free(
    losses: Tensor, reference: Tensor, *, standard_errors: float | None = None, worthwhile: float = WORTHWHILE
) -> bool:
    """Whether losses are above a reference's by no more than is worth a word, and that is more than luck.

    Args:
        losses: (N,).
        reference: (N,), for the same rows.
        standard_errors: how many are added to the difference; None: c(N).
        worthwhile: what that may come to.

    Example:
        >>> few, many = torch.tensor([0.02, -0.02] * 5), torch.tensor([0.02, -0.02] * 500)
        >>> is_free(few, 0 * few), is_free(many, 0 * many)                  # 0 ± 0.007, 0 ± 0.0006
        (False, True)
    """
    difference, error = paired_error(losses, reference)
    needed = standard_errors if standard_errors is not None else standard_errors_for(len(losses))
    return difference + needed * error <= worthwhile  # False for what is not a number


def largest_free(
    costs: Iterable[tuple[float, Tensor]],
    reference: Tensor,
    *,
    standard_errors: float | None = None,
    worthwhile: float = WORTHWHILE,
) -> float:
    """The largest amount that costs nothing worth a word; amounts are tried in rising order until one may cost more.

    Trying them in order needs no more standard errors than one of them would: it ends at the first that fails.

    Args:
        costs: (amount, losses (N,)) in rising order of the amounts; those after the first that may cost are not read.
        reference: (N,), the losses at amount 0.
        standard_errors, worthwhile: as of `is_free`.

    Returns:
        The amount; 0.0 if even the smallest may cost more.

    Example:
        >>> nothing = torch.tensor([1.0, 1.2, 0.8])
        >>> costs = [(0.1, nothing), (0.2, nothing + 0.1), (0.3, nothing - 1.0)]
        >>> largest_free(costs, nothing)
        0.1
    """
    free = 0.0
    for amount, losses in costs:
        if not is_free(losses, reference, standard_errors=standard_errors, worthwhile=worthwhile):
            break
        free = amount
    return free


def _lower(losses: Tensor, reference: Tensor, standard_errors: float, worthwhile: float) -> bool:
    difference, error = paired_error(losses, reference)
    return difference + standard_errors * error < 0 and difference < -worthwhile
