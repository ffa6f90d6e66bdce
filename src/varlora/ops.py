"""What can be done with posteriors: prune, temper, merge, kl, snr. Pure functions; nothing is changed in place.

Every kind of posterior with marginal means m and variances v: signal-to-noise |m| / √v; pruning sets entries to 0;
temperature τ scales the covariance. Diagonal Gaussians, besides: KL(q ‖ p) in closed form, and K posteriors of one
prior p merge into their product ∏ q_k / p^(K−1), whose precision is Σ 1/v_k − (K−1)/v_p.

Source: pruning and test-time temperature arXiv 2506.14280 (which entries are pruned, and how they are ranked, is
not published: our choice); the others follow from the definitions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from varlora.adapters import same_scaling
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    Mixture,
    PointMass,
    PointMassError,
    Posterior,
    PosteriorMeta,
)

logger = logging.getLogger(__name__)

Criterion = Literal["snr", "variance", "magnitude", "random"]
Scope = Literal["global", "tensor"]


P = TypeVar("P", bound=Posterior)


def snr(q: Posterior) -> dict[str, Tensor]:
    """Signal-to-noise ratio |m| / √v by tensor: 0 where m = 0, infinite where m ≠ 0 is known exactly.

    Raises:
        NotAWeightSampleError: the posterior is none over weights.

    Example:
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
        ValueError: an argument is out of its range.
        PointMassError: a point mass is to be pruned by its variance.
        NotAWeightSampleError: what is to be pruned by its variance is no posterior over weights.

    Example:
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
        masks |= _lowest({key: scores[key] for key in keys}, fraction)
    pruned = sum(int(mask.sum()) for mask in masks.values())
    if fraction > 0 and pruned == 0:
        logger.warning("prune(fraction=%g, scope=%r) prunes no entry: too few entries", fraction, scope)
    return q.zeroed(masks, q.meta.after({**operation, "entries": pruned}))


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
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
        >>> temper(q, 4.0).variance["w"]
        tensor([4.])

    Source: arXiv 2506.14280 (posterior scaling at test time; their τ' is 1/τ).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; it must be a finite number, at least 0.")
    meta = q.meta.after({"op": "temper", "temperature": temperature})
    scaled = q.scaled(temperature if temperature > 0 else 1.0, meta)  # refuses what has no variance
    return scaled if temperature > 0 else PointMass(mean=q.point, meta=meta)


def isotropic_prior(q: DiagonalGaussian, precision: float | Mapping[str, float]) -> DiagonalGaussian:
    """The prior N(0, 1/precision) on q's entries, for `kl` and `merge`.

    Tensors of q that did not train are known exactly in the prior, too, so they add nothing to a divergence.

    Args:
        q: gives the keys, shapes and dtypes.
        precision: λ δ > 0, one number or one by key (`q.meta.prior_precision`).

    Raises:
        ValueError: a precision is missing or not positive (a prior with λ δ = 0 is flat, no distribution).

    Example:
        >>> q = DiagonalGaussian(mean={"w": torch.ones(2)}, precision={"w": torch.ones(2)})
        >>> isotropic_prior(q, 25.0).variance["w"]
        tensor([0.0400, 0.0400])
    """
    variance = q.variance
    trained = [key for key, m in q.mean.items() if not _known(m, variance[key])]
    by_key = precision if isinstance(precision, Mapping) else dict.fromkeys(trained, precision)
    for key in trained:
        if key not in by_key or not 0 < by_key[key] < math.inf:
            raise ValueError(
                f"the prior precision of {key} is {by_key.get(key)!r}; it must be a positive number. A run with "
                "weight_decay 0 had a flat prior: give the precision to use (--prior_precision), or train with "
                "weight_decay above 0."
            )
    return DiagonalGaussian(
        mean={key: torch.zeros_like(m) if key in trained else m for key, m in q.mean.items()},
        precision={
            key: torch.full_like(p, by_key[key]) if key in trained else p.clone() for key, p in q.precision.items()
        },
        meta=PosteriorMeta(method="prior"),
    )


def kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """KL(q ‖ p) in nats, summed over all entries: Σ ½ (log(v_p/v_q) + (v_q + (m_q − m_p)²)/v_p − 1).

    Entries that both know exactly, with the same value, add nothing.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: the keys or shapes differ.
        PointMassError: one is a point mass in an entry where the other is not (the divergence is infinite).
        TypeError: one is no diagonal Gaussian.

    Example:
        >>> one = torch.ones(1)
        >>> q = DiagonalGaussian(mean={"w": one}, precision={"w": one})
        >>> kl(q, DiagonalGaussian(mean={"w": one * 0}, precision={"w": one})).item()
        0.5
    """
    for name, posterior in (("q", q), ("p", p)):
        if isinstance(posterior, PointMass):
            raise PointMassError(f"KL(q ‖ p) is infinite: {name} is a point mass.")
        _diagonal(posterior, f"KL(q ‖ p), {name}")
    _same_tensors([q, p])
    total = torch.zeros((), dtype=torch.float64)
    for key in q.mean:
        precision_q, precision_p = q.precision[key].double(), p.precision[key].double().to(q.precision[key].device)
        distance = (q.mean[key].double() - p.mean[key].double().to(q.mean[key].device)).square()
        exact_q, exact_p = torch.isinf(precision_q), torch.isinf(precision_p)
        if infinite := int(((exact_q != exact_p) | (exact_q & exact_p & (distance > 0))).sum()):
            raise PointMassError(
                f"KL(q ‖ p) is infinite: {infinite} of {distance.numel()} entries of {key} are known exactly by one "
                "of the two only (pruned entries are). Take the divergence before pruning."
            )
        ratio = precision_p / precision_q
        # r − 1 − log r, without cancellation near r = 1.
        log_ratio = torch.where((ratio - 1).abs() < 0.5, torch.log1p(ratio - 1), ratio.log())
        terms = 0.5 * (ratio - 1 - log_ratio + precision_p * distance)
        total += terms.masked_fill(exact_q, 0.0).sum().cpu()
    return total


def merge(
    posteriors: Sequence[DiagonalGaussian],
    *,
    prior: DiagonalGaussian,
    invalid: Literal["raise", "prior"] = "raise",
) -> DiagonalGaussian:
    """The product of K posteriors that were trained on different data from the same prior: ∏ q_k / p^(K−1).

    precision = Σ 1/v_k − (K−1)/v_p,  mean = (Σ m_k/v_k − (K−1) m_p/v_p) / precision. An entry that some q_k knows
    exactly keeps that value. Meaningful where the posteriors describe the same weights: LoRA adapters trained
    from the same initial A, say, not from different seeds.

    Args:
        posteriors: q_1 .. q_K, with the same keys and shapes, base model and LoRA scaling.
        prior: p; see `isotropic_prior`.
        invalid: an entry whose precision is not positive has no Gaussian: "raise", or take the "prior" there.

    Returns:
        The product; `num_examples` and `ess` are the sums, where known.

    Raises:
        ValueError: the posteriors do not belong together, or entries are invalid; the message names the tensor
            and counts them.
        PointMassError: one of them is a point mass.
        TypeError: one of them is no diagonal Gaussian.

    Example:
        >>> q = DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.full((1,), 3.0)})
        >>> merged = merge([q, q], prior=isotropic_prior(q, 1.0))
        >>> merged.precision["w"].item(), round(merged.mean["w"].item(), 4)
        (5.0, 1.2)
    """
    if any(q.meta.tuned is not None for q in posteriors):
        logger.warning("what `varlora tune` chose for the parts is left out of the merged posterior; tune that one")
    if invalid not in ("raise", "prior"):
        raise ValueError(f"invalid is {invalid!r}; it must be 'raise' or 'prior'.")
    if not posteriors:
        raise ValueError("merge needs at least one posterior.")
    if any(isinstance(q, PointMass) for q in (*posteriors, prior)):
        raise PointMassError("merge weighs by precision, and a point mass has none; average their means instead.")
    for q in (*posteriors, prior):
        _diagonal(q, "merge")
    _same_tensors([*posteriors, prior])
    mean, precision, replaced = {}, {}, 0
    for key in posteriors[0].mean:
        m, p, valid = _product(key, posteriors, prior)
        if bad := int((~valid).sum()):
            if invalid == "raise":
                raise ValueError(
                    f"{bad} of {valid.numel()} entries of {key} have no product: their precision is not positive "
                    "(the posteriors are wider than the prior there, or known exactly with different values). "
                    "Is this the prior they were trained with? merge(..., invalid='prior') takes the prior there."
                )
            replaced += bad
            m = torch.where(valid, m, prior.mean[key].to(m))
            p = torch.where(valid, p, prior.precision[key].to(p))
        mean[key] = m.to(posteriors[0].mean[key].dtype)
        precision[key] = p.to(posteriors[0].precision[key].dtype)
    return DiagonalGaussian(mean=mean, precision=precision, meta=_merged_meta(posteriors, replaced))


def _product(
    key: str, posteriors: Sequence[DiagonalGaussian], prior: DiagonalGaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, precision (float64) and validity of one tensor of the product."""
    device = posteriors[0].mean[key].device
    weights_K = torch.stack([q.precision[key].to(device, torch.float64) for q in posteriors])
    means_K = torch.stack([q.mean[key].to(device, torch.float64) for q in posteriors])
    prior_mean = prior.mean[key].to(device, torch.float64)
    prior_weight = prior.precision[key].to(device, torch.float64) * (len(posteriors) - 1)

    exact_K = torch.isinf(weights_K)
    exact = exact_K.any(0)
    highest = torch.where(exact_K, means_K, -math.inf).amax(0)
    lowest = torch.where(exact_K, means_K, math.inf).amin(0)

    precision = weights_K.sum(0) - prior_weight
    mean = ((weights_K * means_K).sum(0) - prior_weight * prior_mean) / precision
    mean = torch.where(exact, highest, mean)
    precision = torch.where(exact, math.inf, precision)
    valid = torch.where(exact, highest == lowest, (precision > 0) & torch.isfinite(mean))
    return mean, precision, valid


def _merged_meta(posteriors: Sequence[DiagonalGaussian], replaced: int) -> PosteriorMeta:
    metas = [q.meta for q in posteriors]
    for name in ("base_model", "base_revision", "readout"):
        values = {repr(value): value for meta in metas if (value := getattr(meta, name)) is not None}
        if len(values) > 1:
            raise ValueError(f"only posteriors of one {name} can be merged, not of {' and '.join(values)}.")
    if not all(same_scaling(metas[0].adapter_config, meta.adapter_config) for meta in metas):
        raise ValueError("the adapters differ in rank, alpha or another scaling, so their weights do not compare.")
    if any(meta.logit_temperature != metas[0].logit_temperature for meta in metas):
        raise ValueError("the posteriors have different logit temperatures; merge them before fitting it.")
    by_mode = metas[0].logit_temperature_by_mode
    if any(meta.logit_temperature_by_mode != by_mode for meta in metas):
        logger.warning(
            "the posteriors were left with different logit temperatures by their trainings; the merged one has none. "
            "Fit one on validation rows."
        )
        by_mode = None
    sources = [
        {"method": m.method, "num_examples": m.num_examples, "ess": m.ess, "history": list(m.history)} for m in metas
    ]
    merged: dict[str, Any] = {"op": "merge", "invalid_entries_from_prior": replaced, "sources": sources}
    counts = [m.num_examples for m in metas if m.num_examples is not None]
    sizes = [m.ess for m in metas if m.ess is not None]
    priors = [m.prior_precision for m in metas]
    return dataclasses.replace(
        metas[0],
        logit_temperature_by_mode=by_mode,
        method=metas[0].method if len({m.method for m in metas}) == 1 else "merge",
        num_examples=sum(counts) if len(counts) == len(metas) else None,
        ess=sum(sizes) if len(sizes) == len(metas) else None,
        prior_precision=priors[0] if all(p == priors[0] for p in priors) else None,
        base_model=next((m.base_model for m in metas if m.base_model), None),
        base_revision=next((m.base_revision for m in metas if m.base_revision), None),
        readout=next((m.readout for m in metas if m.readout), None),
        tuned=None,
        history=(merged,),
        diagnostics=None,
    )


def _diagonal(q: object, where: str) -> None:
    if not isinstance(q, DiagonalGaussian):
        raise TypeError(f"{where}: closed forms are given for DiagonalGaussian, not for {type(q).__name__}.")


def _same_tensors(posteriors: Sequence[DiagonalGaussian]) -> None:
    first = {key: m.shape for key, m in posteriors[0].mean.items()}
    for other in posteriors[1:]:
        shapes = {key: m.shape for key, m in other.mean.items()}
        if differing := sorted(first.keys() ^ shapes.keys()):
            raise ValueError(f"the posteriors have different tensors; only one of them has {', '.join(differing[:4])}.")
        if wrong := [key for key in first if first[key] != shapes[key]]:
            key = wrong[0]
            raise ValueError(f"{key} is {tuple(first[key])} in one posterior and {tuple(shapes[key])} in another.")


def _known(mean: Tensor, variance: Tensor) -> bool:
    """Whether a tensor is known exactly as a whole, and not by pruning: it did not train, or only as a point."""
    return not bool((variance > 0).any()) and bool((mean != 0).any())


def _scores(q: Posterior, by: Criterion, seed: int) -> dict[str, Tensor]:
    """What to prune by, lowest first, without the tensors that stay; entries pruned before come first of all."""
    points = by in ("magnitude", "random") and isinstance(q, (PointMass, DropoutMasks))
    variance = {} if points else q.variance
    varied = {key: m for key, m in q.mean.items() if points or not _known(m, variance[key])}
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
