"""The draws that a predictor averages, made once and held from call to call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from varlora.posterior import DropoutMasks, Mixture, PointMass, Posterior
from varlora.posterior.draws import number_of_draws, weight_draws

HELD_BYTES = 2**30
"""Most bytes of draws that are held; more are drawn anew, the same ones, at each call."""


def hold_draws(q: Posterior, samples: int, *, seed: int, device: torch.device) -> Posterior:
    """The draws that predictions make of a posterior, as points with equal weights.

    Args:
        q: The posterior; dropout masks are no draws of weights, and stay as they are, as does what is too much to hold.
        samples: S.
        seed: Decides the draws.
        device: Where they are held.

    Example:
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(2)}, precision={"w": torch.ones(2)})
        >>> len(hold_draws(q, 3, seed=0, device=torch.device("cpu")).components)
        3
    """
    size = sum(t.numel() * t.element_size() for t in q.point.values())
    if isinstance(q, DropoutMasks) or number_of_draws(q, samples) * size > HELD_BYTES:
        return q
    points = [PointMass(mean=_on(weights, device), meta=q.meta) for weights in weight_draws(q, samples, seed=seed)]
    return Mixture(components=tuple(points), meta=q.meta) if len(points) > 1 else points[0]


def move_held(q: Posterior, device: torch.device) -> Posterior:
    """Draws that are held, on another device; a posterior that is drawn from stays where it is."""
    if isinstance(q, PointMass):
        return dataclasses.replace(q, mean=_on(q.mean, device))
    if isinstance(q, Mixture):
        return dataclasses.replace(q, components=tuple(move_held(component, device) for component in q.components))
    return q


def _on(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: t.to(device) for key, t in tensors.items()}
