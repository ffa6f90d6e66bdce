"""As many draws for each row as its averaged probabilities need: few where the draws agree, more where they do not.

    p̄ = (1/S) Σ_s p_s,    se = max_c sd_j[ (p_2j + p_2j+1)_c / 2 ] / sqrt(S/2)    over the S/2 pairs of opposite draws

A row is drawn for 4, 8 and at most 16 times; it stops once its standard error is at most the tolerance (our choice: a
percentage point of probability, .01). Pairs are the units, since mirrored draws are not independent. A standard error
by two pairs is itself unsure: it is widened as Student's t is for so few, and some rows still stop too early. It bounds
the error of the average over the posterior, not of the model.

A row that stopped after s draws holds them S/s times, so that averages over S draws, entropies and mutual information
are those of its own s. Across rows, draw number k is one set of weights only where it was drawn for them all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from varlora.posterior import DropoutMasks, Mixture, PointMass, Posterior
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import weight_draws
from varlora.readout.batch_rows import is_by_rows, take_rows

FEWEST, MOST = 4, 16
TOLERANCE = 0.01
WIDENED = {2: 1.84, 4: 1.20, 8: 1.08}
"""By the number of pairs, how many standard errors hold what one does of a normal: Student's t at 84.1 %."""

logger = logging.getLogger(__name__)


def can_stop(q: Posterior | None) -> bool:
    """Whether rows may take different numbers of draws: of one distribution, from which more can be drawn.

    Every member of a mixture is asked, and dropout masks have no pairs; they take the usual number. Of a posterior
    whose mean `varlora tune` chose nothing is drawn.
    """
    return q is not None and not isinstance(q, (PointMass, Mixture, DropoutMasks)) and most_draws(q) is not None


def most_draws(q: Posterior) -> int | None:
    """How many draws to ask of a posterior where each row takes as many as it needs; None, where its mean was tuned."""
    tuned = q.meta.tuned
    return None if tuned is not None and tuned.canonical.mode == "mean" else MOST


def draws_until_sure(
    model: nn.Module,
    q: Posterior,
    batches: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], Tensor],
    *,
    what: str,
    antithetic: bool,
    seed: int,
    tolerance: float = TOLERANCE,
    done: Callable[[int], object] = lambda passes: None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every row under as many draws as it needs.

    Args:
        model: the model.
        q: the posterior, of which `can_stop` is true.
        batches: as for `over_batches`.
        read: gives a batch's log-probabilities (B, C), float64.
        what: as for `over_batches`.
        antithetic: the two of a pair mirror each other.
        seed: decides the draws; the first of more draws are those of fewer.
        tolerance: largest standard error of an averaged probability, with which a row stops.
        done: is told how many passes over one batch are done.

    Returns:
        (N, S, C), S the most draws that a row took, and how many each row took (N,) int64, by which S is divisible.

    Raises:
        ValueError: the tolerance is not above 0; or as `over_batches`.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be above 0, a standard error of a probability")
    sizes = [len(batch["labels"]) for batch in batches]
    by_rows = list(map(is_by_rows, batches))  # of the others every row waits until all are sure
    first = torch.tensor([0, *sizes]).cumsum(0).tolist()
    waiting = [torch.arange(size) for size in sizes]
    taken = torch.zeros(sum(sizes), dtype=torch.int64)
    draws = weight_draws(q, MOST, antithetic=antithetic, seed=seed)
    values: Tensor | None = None
    drawn = 0
    while drawn < MOST and any(map(len, waiting)):
        points = [PointMass(mean=weights, meta=q.meta) for weights in islice(draws, max(FEWEST, drawn))]
        asked = [number for number, rows in enumerate(waiting) if len(rows)]
        passes = over_batches(
            model,
            Mixture(components=tuple(points), meta=q.meta),
            len(points),
            [take_rows(batches[number], waiting[number]) if by_rows[number] else batches[number] for number in asked],
            read,
            what=what,
            antithetic=False,
            seed=seed,
            done=done,
        )
        for place, number in enumerate(asked):
            found = torch.stack([of_draw[place] for of_draw in passes], 1)
            if values is None:
                values = found.new_zeros(len(taken), MOST, found.shape[-1])
            rows = first[number] + waiting[number]
            values[rows, drawn : drawn + len(points)] = found
            taken[rows] = drawn + len(points)
            unsure = standard_error(values[rows, : drawn + len(points)]) > tolerance
            waiting[number] = waiting[number][unsure if by_rows[number] else unsure.any().expand_as(unsure)]
        drawn += len(points)
    assert values is not None
    for number in range(drawn // 2, FEWEST - 1, -1):
        stopped = taken == number
        if bool(stopped.any()):
            values[stopped, :drawn] = values[stopped, :number].repeat(1, drawn // number, 1)
    logger.info(
        "%d rows took %.1f draws on average, %d of them the most, %d",
        *(len(taken), taken.double().mean(), int((taken == drawn).sum()), drawn),
    )
    return values[:, :drawn], taken


def standard_error(log_probs: Tensor) -> Tensor:
    """The largest standard error of a row's averaged probabilities (N,), by pairs of draws, widened for so few.

    Args:
        log_probs: (N, S, C); S is 4, 8 or 16.

    Example:
        >>> probs = torch.tensor([[[0.7], [0.5], [0.9], [0.7]]], dtype=torch.float64)    # pairs: .6, .8
        >>> round(standard_error(probs.log()).item(), 6)                                 # .1, times 1.84
        0.184
    """
    pairs: Tensor = log_probs.exp().unfold(1, 2, 2).mean(-1)
    spread: Tensor = pairs.std(1).amax(-1)
    number = pairs.shape[1]
    return WIDENED[number] * spread / math.sqrt(number)
