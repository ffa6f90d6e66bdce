"""Thresholds by group of rows: a group's own where it has the rows for its guarantee, else the common one.

A guarantee for all rows together says nothing of one kind of them: 90 % of all rows can be covered by 99 % of the easy
ones and 60 % of the hard. A threshold that is chosen on a group's rows alone, by the same rule, guarantees that group
(Mondrian, or group-conditional, conformal prediction). Rows of a group without a threshold of its own, and rows of
groups that the n rows do not have, go by the common one, which is chosen on all rows and promises nothing of a group.

Source: Vovk, Lindsay, Nouretdinov and Gammerman, "Mondrian confidence machine", 2003; Vovk, arXiv:1209.2673.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from varlora.metrics.selective_accuracy import CannotGuaranteeError

Fitted = TypeVar("Fitted")


def fit_by_group(
    fit: Callable[[Tensor], Fitted], groups: Sequence[str | None], *, fewest: int | None
) -> dict[str, Fitted]:
    """What is fitted to the rows of each group that is large enough.

    Args:
        fit: to the rows of a mask (N,) bool. A `CannotGuaranteeError` of it leaves the group without one.
        groups: N names; None where a row's group is not known.
        fewest: how many rows a group needs; None: none has enough.

    Example:
        >>> values = torch.tensor([0.1, 0.2, 0.3, 0.9])
        >>> fit_by_group(lambda rows: round(float(values[rows].max()), 1), ["a", "a", "a", "b"], fewest=2)
        {'a': 0.3}
    """
    if fewest is None:
        return {}
    fitted = {}
    for name, rows in sorted(Counter(group for group in groups if group is not None).items()):
        if rows < fewest:
            continue
        try:
            fitted[name] = fit(torch.tensor([group == name for group in groups]))
        except CannotGuaranteeError:
            continue
    return fitted
