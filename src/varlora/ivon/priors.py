"""The priors of IVON by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from varlora.ivon.adaptive_prior import AdaptivePrior
from varlora.ivon.prior import FixedPrior, Prior

PriorName = Literal["fixed", "adaptive"]

PRIORS: Mapping[str, Prior] = {prior.name: prior for prior in (FixedPrior(), AdaptivePrior())}


def prior_of(group: Mapping[str, Any]) -> Prior:
    """The prior of a parameter group.

    Raises:
        KeyError: it names none.

    Example:
        >>> prior_of({"prior": "adaptive"}).name
        'adaptive'
    """
    return PRIORS[group["prior"]]
