"""An interval for the mean of numbers between two bounds, which covers it with its probability for any n.

A mean cost needs it: a bootstrap of costs among which the rare dear mistake has not happened says that there is none.
For x_t in [0, 1], drawn alike and independently, and a mean m that they might have,

    K_t(m) = max{½ ∏_{i≤t} (1 + λ_i (x_i − m)), ½ ∏_{i≤t} (1 − λ_i (x_i − m))}
    λ_i    = min{√(2 log(2/α) / (n σ̂²_{i−1})), ½ / m or ½ / (1 − m)}, σ̂²_{i−1} of the numbers before i

is at most the capital of a gambler who starts with 1 and bets fairly on the mean not being m, where it is m: by Ville's
inequality it ever reaches 1/α with probability at most α. The interval holds the m at which it has not. The numbers are
dealt out at random first, since rows of a file are often sorted by their class, and sorted ones are not drawn alike.

Source: Waudby-Smith and Ramdas, arXiv:2010.09686, Section 4 (the hedged capital, and the bets).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varlora.metrics.inputs import as_float64

GRID = 1000
"""Steps of the means that are tried; the interval is widened to the next one."""
AT_ONCE = 2**22
"""Numbers that are held at once."""


def bounded_mean_interval(
    values: Tensor, *, low: float = 0.0, high: float = 1.0, level: float = 0.95
) -> tuple[float, float]:
    """An interval that holds the mean of new values with at least this probability, over the choice of these.

    Args:
        values: (n,), in any order.
        low: none can be lower.
        high: none can be higher.
        level: the probability.

    Raises:
        ValueError: there is no value, one is outside the bounds or NaN, or an argument does not fit.

    Example:
        >>> low, high = bounded_mean_interval(torch.zeros(100))      # 100 rows, no mistake
        >>> low, 0.02 < high < 0.08
        (0.0, True)
        >>> bounded_mean_interval(torch.tensor([5.0]), high=10.0)    # one row says next to nothing
        (0.0, 10.0)
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"values have shape {tuple(values.shape)}; give (n,), n at least 1.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a probability between 0 and 1, e.g. 0.95.")
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"the bounds are {low} and {high}; give finite ones, the lower first.")
    numbers = as_float64(values)
    if not bool(((numbers >= low) & (numbers <= high)).all()):
        raise ValueError(f"a value is not within {low} and {high}.")
    if low == high:
        return low, high
    alpha, n = 1 - level, len(numbers)
    x = ((numbers - low) / (high - low))[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    count = torch.arange(1, n + 1, dtype=torch.float64)
    mean = (0.5 + x.cumsum(0)) / (count + 1)
    spread = (0.25 + (x - mean).square().cumsum(0)) / (count + 1)
    before = torch.cat([torch.tensor([0.25], dtype=torch.float64), spread[:-1]])
    bets = (2 * math.log(2 / alpha) / (n * before)).sqrt()
    held = []
    for means in torch.split(torch.arange(GRID + 1, dtype=torch.float64) / GRID, max(1, AT_ONCE // n)):
        m = means[:, None]
        up = torch.log1p(torch.minimum(bets, 0.5 / m) * (x - m)).cumsum(1).amax(1)
        down = torch.log1p(-torch.minimum(bets, 0.5 / (1 - m)) * (x - m)).cumsum(1).amax(1)
        held.append(torch.maximum(up, down) - math.log(2) < math.log(1 / alpha))
    kept = torch.cat(held).nonzero().squeeze(1)
    first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (round(float(x.mean()) * GRID),) * 2
    scale = (high - low) / GRID
    return max(low, low + scale * (first - 1)), min(high, low + scale * (last + 1))
