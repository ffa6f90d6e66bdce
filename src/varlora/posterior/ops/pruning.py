"""Which entries a posterior can do without: signal-to-noise |m| / √v, and pruning, which sets entries to 0.

Source: pruning arXiv 2506.14280 (which entries are pruned, and how they are ranked, is not published: our choice).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

import torch
from torch import Tensor

from varlora.posterior import Criterion, DropoutMasks, Mixture, PointMass, PointMassError, Posterior, Scope

logger = logging.getLogger(__name__)

P = TypeVar("P", bound=Posterior)


def snr(q: Posterior) -> dict[str, Tensor]:
    """Signal-to-noise ratio |m| / √v by tensor: 0 where m = 0, infinite where m ≠ 0 is known exactly.

    Raises:
        NotAWeightSampleError: the posterior is none over weights.

    Example:
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.tensor([-2.0, 0.0])}, precision={"w": torch.tensor([4.0, 1.0])})
        >>> snr(q)["w"]
        tensor([4., 0.])
    """
    variance = q.variance
    return {key: _ratio(m, variance[key]) for key, m in q.mean.items()}


def prune(q: P, fraction: float, by: Criterion = "snr", scope: Scope = "global", *, seed: int = 0) -> P:
    """Sets the least certain entries to zero, mean and variance both.

    floor(fraction · n) entries are pruned, n counting all entries but those of tensors that are known exactly as a
    whole (what did not train, BLoB's B), which stay. Entries pruned before rank first, so pruning again by the same
    fraction changes nothing. Ties go to the first entry in sorted order of the keys. In a `Mixture` every component is
    pruned by itself.

    Args:
        q: a posterior; a `PointMass` or `DropoutMasks` can be pruned by magnitude or at random only.
        fraction: share of the entries to prune, 0 to 1.
        by: "snr" prunes the lowest |m| / √v, "variance" the largest v, "magnitude" the lowest |m|; "random" whichever
            the seed says, to compare the others with: a larger fraction prunes what a smaller one does, and more.
        scope: rank over all tensors ("global") or within each ("tensor").
        seed: of "random", whose draws come from a generator of their own; without effect on the others.

    Returns:
        A new posterior of the same kind.

    Raises:
        ValueError: an argument is out of its range, or all entries have the same variance and are to be ranked by it.
        PointMassError: a point mass is to be pruned by its variance.
        NotAWeightSampleError: what is to be pruned by its variance is no posterior over weights.

    Example:
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.tensor([3.0, 0.1])}, precision={"w": torch.ones(2)})
        >>> prune(q, 0.5).mean["w"]
        tensor([3., 0.])

    Source: arXiv 2506.14280, with the fraction, ranking and variance of our choice.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; it must lie between 0 and 1.")
    if by not in get_args(Criterion):
        raise ValueError(f"by is {by!r}; it must be 'snr', 'variance', 'magnitude' or 'random'.")
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}; it must be 'global' or 'tensor'.")
    if isinstance(q, PointMass) and by in ("snr", "variance"):
        raise PointMassError(f"a point mass has no variance to prune by {by}; use by='magnitude'.")
    operation = {"op": "prune", "fraction": fraction, "by": by, "scope": scope}
    if by == "random":
        operation["seed"] = seed
    if isinstance(q, Mixture):
        components = tuple(prune(component, fraction, by, scope, seed=seed) for component in q.components)
        entries = sum(int(component.meta.history[-1]["entries"]) for component in components)
        return dataclasses.replace(q, components=components, meta=q.meta.after({**operation, "entries": entries}))

    scores = _scores(q, by, seed)
    groups = [list(scores)] if scope == "global" else [[key] for key in scores]
    masks: dict[str, Tensor] = {}
    for keys in filter(None, groups):
        if by == "variance" and 0 < fraction < 1:
            _check_variances_differ([scores[key] for key in keys])
        masks |= _lowest({key: scores[key] for key in keys}, fraction)
    pruned = sum(int(mask.sum()) for mask in masks.values())
    if fraction > 0 and pruned == 0:
        logger.warning("prune(fraction=%g, scope=%r) prunes no entry: too few entries", fraction, scope)
    return q.zeroed(masks, q.meta.after({**operation, "entries": pruned}))


def known_exactly(mean: Tensor, variance: Tensor) -> bool:
    """Whether a tensor is known exactly as a whole, and not by pruning: it did not train, or only as a point."""
    return not bool((variance > 0).any()) and bool((mean != 0).any())


def _scores(q: Posterior, by: Criterion, seed: int) -> dict[str, Tensor]:
    """What to prune by, lowest first, without the tensors that stay; entries pruned before come first of all."""
    points = by in ("magnitude", "random") and isinstance(q, (PointMass, DropoutMasks))
    variance = {} if points else q.variance
    varied = {key: m for key, m in q.mean.items() if points or not known_exactly(m, variance[key])}
    if by == "magnitude":
        return {key: m.abs() for key, m in varied.items()}
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = {key: torch.rand(m.shape, generator=generator, dtype=torch.float64) for key, m in varied.items()}
        pruned = {key: (m == 0) & (points or variance[key] == 0) for key, m in varied.items()}
        return {key: score.masked_fill(pruned[key].cpu(), -1.0).to(varied[key].device) for key, score in scores.items()}
    if by == "variance":
        return {key: torch.where(variance[key] == 0, -math.inf, -variance[key]) for key in varied}
    return {key: _ratio(m, variance[key]) for key, m in varied.items()}


def _check_variances_differ(scores: Sequence[Tensor]) -> None:
    flat = torch.cat([score.flatten().cpu() for score in scores])
    varied = flat[flat > -math.inf]
    if varied.numel() > 1 and varied.min() == varied.max():
        raise ValueError(
            "by='variance' ranks nothing here: all entries have the same variance, as those of a training whose noise "
            "follows the fit. Use by='snr', which goes by their size then."
        )


def _ratio(mean: Tensor, variance: Tensor) -> Tensor:
    return torch.where(mean == 0, 0.0, mean.abs() * variance.rsqrt())


def _lowest(scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Masks of the floor(fraction · n) lowest scores over all tensors."""
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    count = math.floor(fraction * flat.numel() + 1e-9)
    chosen = torch.zeros(flat.numel(), dtype=torch.bool)
    chosen[flat.sort(stable=True).indices[:count]] = True
    parts = torch.split(chosen, [score.numel() for score in scores.values()])
    return {
        key: part.reshape(score.shape).to(score.device)
        for part, (key, score) in zip(parts, scores.items(), strict=True)
    }
