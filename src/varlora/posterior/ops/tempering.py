"""Temperature: a posterior with its covariance scaled.

Source: test-time temperature arXiv 2506.14280.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

from varlora.posterior import PointMass, Posterior

P = TypeVar("P", bound=Posterior)


def temper(q: P, temperature: float) -> P | PointMass:
    """Scales the covariance by τ: 1 is the trained posterior, above 1 warmer, 0 its point as a `PointMass`.

    In a `Mixture` the covariance of every component is scaled, not the distance between them.

    Args:
        q: the posterior.
        temperature: τ >= 0.

    Raises:
        ValueError: τ is negative, not finite, or takes a precision out of its dtype's range.
        PointMassError: q is a point mass, which no temperature changes.
        NotAWeightSampleError: q is no posterior over weights.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
        >>> temper(q, 4.0).variance["w"]
        tensor([4.])

    Source: arXiv 2506.14280 (posterior scaling at test time; their τ' is 1/τ).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; it must be a finite number, at least 0.")
    meta = q.meta.after({"op": "temper", "temperature": temperature})
    if meta.prior_precision is not None and temperature > 0:  # the prior is part of the posterior, and scaled with it
        tempered = {key: precision / temperature for key, precision in meta.prior_precision.items()}
        meta = dataclasses.replace(meta, prior_precision=tempered)
    scaled = q.scaled(temperature if temperature > 0 else 1.0, meta)  # refuses what has no variance
    return scaled if temperature > 0 else PointMass(mean=q.point, meta=meta)
