"""Diagonal Gaussians in closed form: a prior on the same entries, KL(q ‖ p), and the product of several posteriors.

K posteriors of one prior p merge into ∏ q_k / p^(K−1), whose precision is Σ 1/v_k − (K−1)/v_p. Where each has learned
the width of its own prior around its start (the default of older versions), p is the geometric mean of theirs
(`common_prior`): our choice.

Source: the definitions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from varlora.adapters import base_differences, same_scaling
from varlora.posterior import DiagonalGaussian, Mode, PointMass, PointMassError, PosteriorMeta
from varlora.posterior.ops.pruning import known_exactly

logger = logging.getLogger(__name__)


def isotropic_prior(q: DiagonalGaussian, precision: float | Mapping[str, float] | None) -> DiagonalGaussian:
    """The prior N(m0, 1/precision) on q's entries, for `kl` and `merge`; m0 is q's `prior_mean`, 0 where it has none.

    Tensors of q that did not train are known exactly in the prior, too, so they add nothing to a divergence.

    Args:
        q: gives the keys, shapes, dtypes and m0.
        precision: λ δ > 0, one number or one by key (`q.meta.prior_precision`).

    Raises:
        ValueError: a precision is missing or not positive (a prior with λ δ = 0 is flat, no distribution); or q was
            trained with a prior around its start and does not hold it.

    Example:
        >>> q = DiagonalGaussian(mean={"w": torch.ones(2)}, precision={"w": torch.ones(2)})
        >>> isotropic_prior(q, 25.0).variance["w"]
        tensor([0.0400, 0.0400])
    """
    variance = q.variance
    trained = [key for key, m in q.mean.items() if not known_exactly(m, variance[key])]
    by_key = dict.fromkeys(trained, precision) if isinstance(precision, (int, float)) else dict(precision or {})
    if (q.meta.diagnostics or {}).get("prior_width") is not None and not q.meta.prior_precision:
        raise ValueError(
            "the prior of this posterior is around where its training began, which a former version of varlora did not "
            "keep. Train anew, or with --variance hessian and --weight_decay above 0."
        )
    if missing := [key for key in trained if key not in by_key]:
        raise ValueError(f"{missing[0]} has no prior precision. Give the one to use (--prior_precision).")
    for key in trained:
        if not 0 < by_key[key] < math.inf:
            raise ValueError(
                f"the prior precision of {key} is {by_key[key]!r}; it must be a positive number. A run with "
                "weight_decay 0 had a flat prior: give the precision to use (--prior_precision), or train with "
                "--variance hessian and --weight_decay above 0."
            )
    return DiagonalGaussian(
        mean={
            key: q.prior_mean.get(key, torch.zeros_like(m)).to(m) if key in trained else m for key, m in q.mean.items()
        },
        precision={
            key: torch.full_like(p, by_key[key]) if key in trained else p.clone() for key, p in q.precision.items()
        },
        meta=PosteriorMeta(method="prior"),
    )


def common_prior(posteriors: Sequence[DiagonalGaussian]) -> DiagonalGaussian:
    """The prior that posteriors of parts of the data were trained with, for `merge`.

    A prior around the start, the default of older versions, each has learned for itself: its precision is the geometric
    mean ∏ p_k^(1/K).

    Raises:
        ValueError: a posterior does not say its prior, or the priors differ (in the width of a fixed or adaptive one,
            or in where training began), or are flat. The message numbers the posterior, from 1.

    Example:
        >>> from varlora.posterior import PosteriorMeta
        >>> q = DiagonalGaussian(
        ...     mean={"w": torch.ones(1)},
        ...     precision={"w": torch.full((1,), 5.0)},
        ...     prior_mean={"w": torch.full((1,), 0.9)},
        ...     meta=PosteriorMeta(prior_precision={"w": 2.0}),
        ... )
        >>> prior = common_prior([q, q])
        >>> prior.mean["w"], prior.precision["w"]
        (tensor([0.9000]), tensor([2.]))
    """
    first = posteriors[0]
    precision = isotropic_prior(first, first.meta.prior_precision).precision
    known = {key: float(p.flatten()[0]) for key, p in precision.items() if not bool(torch.isinf(p).all())}
    totals = dict.fromkeys(known, 0.0)
    for number, q in enumerate(posteriors, start=1):
        own = q.meta.prior_precision or {}
        isotropic_prior(q, own)  # says what it lacks
        _same_start(number, q, first)
        moving = (q.meta.diagnostics or {}).get("prior_width") is not None or bool(q.prior_mean)
        for key in known:
            if key not in own or (own[key] != known[key] and not moving):
                raise ValueError(
                    f"posterior {number} and posterior 1 were trained with different priors ({key}). Train all with "
                    "one --weight_decay and one --ess (an adaptive prior is each run's own), or say with "
                    "--prior_precision which prior to divide out."
                )
            totals[key] += own[key]
    return isotropic_prior(first, {key: total / len(posteriors) for key, total in totals.items()})


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
    posteriors: Sequence[DiagonalGaussian], *, prior: DiagonalGaussian, invalid: Literal["raise", "prior"] = "raise"
) -> DiagonalGaussian:
    """The product of K posteriors that were trained on different data from the same prior: ∏ q_k / p^(K−1).

    precision = Σ 1/v_k − (K−1)/v_p,  mean = (Σ m_k/v_k − (K−1) m_p/v_p) / precision. An entry that some q_k knows
    exactly keeps that value. Meaningful where the posteriors describe the same weights: LoRA adapters trained
    from the same initial A, say, not from different seeds.

    Args:
        posteriors: q_1 .. q_K, with the same keys and shapes, base model and LoRA scaling.
        prior: p; see `common_prior` and `isotropic_prior`.
        invalid: an entry whose precision is not positive has no Gaussian: "raise", or take the "prior" there.

    Returns:
        The product, of the same prior; `num_examples` and `ess` are the sums, where known.

    Raises:
        ValueError: the posteriors do not belong together, the prior is not around where their trainings began, or
            entries are invalid; the message names the tensor and counts them.
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
    for number, q in enumerate(posteriors, start=1):
        _same_start(number, q, posteriors[0])
    for key, start in posteriors[0].prior_mean.items():
        if not torch.equal(prior.mean[key].to(start), start):
            raise ValueError(
                f"the prior of {key} is not around where the posteriors' training began. Take "
                "common_prior(posteriors), or isotropic_prior(posteriors[0], precision)."
            )
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
    meta = dataclasses.replace(_merged_meta(posteriors, replaced), prior_precision=_precision_of(prior))
    return DiagonalGaussian(mean=mean, precision=precision, prior_mean=posteriors[0].prior_mean, meta=meta)


def _same_start(number: int, q: DiagonalGaussian, first: DiagonalGaussian) -> None:
    """Whether two priors have the same mean, wherever it is not 0."""
    for key in sorted(q.prior_mean.keys() | first.prior_mean.keys()):
        starts = [other.prior_mean.get(key) for other in (q, first)]
        if starts[0] is None or starts[1] is None or not torch.equal(starts[0], starts[1].to(starts[0])):
            raise ValueError(
                f"posterior {number} and posterior 1 began their trainings in different places ({key}), and their "
                "priors are around these. Train all from one initialisation (--seed)."
            )


def _precision_of(prior: DiagonalGaussian) -> dict[str, float] | None:
    """λδ by tensor of an isotropic prior; None if it is another."""
    finite = {key: p for key, p in prior.precision.items() if not bool(torch.isinf(p).any())}
    if any(bool((p != p.flatten()[0]).any()) for p in finite.values()):
        return None
    return {key: float(p.flatten()[0]) for key, p in finite.items()} or None


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
    bases = [meta.base_fingerprint for meta in metas if meta.base_fingerprint is not None]
    if differing := {words for base in bases[1:] for words in base_differences(bases[0], base)}:
        raise ValueError(
            f"only posteriors of one base model can be merged: the {' and '.join(sorted(differing))} differ."
        )
    if not all(same_scaling(metas[0].adapter_config, meta.adapter_config) for meta in metas):
        raise ValueError("the adapters differ in rank, alpha or another scaling, so their weights do not compare.")
    temperatures = metas[0].logit_temperatures
    if len({tuple(map(meta.logit_temperature_of, get_args(Mode))) for meta in metas}) > 1:
        logger.warning(
            "the posteriors have different logit temperatures; the merged one has none. Fit one on validation rows, by "
            "`varlora tune`."
        )
        temperatures = {}
    sources = [
        {"method": m.method, "num_examples": m.num_examples, "ess": m.ess, "history": list(m.history)} for m in metas
    ]
    merged: dict[str, Any] = {"op": "merge", "invalid_entries_from_prior": replaced, "sources": sources}
    counts = [m.num_examples for m in metas if m.num_examples is not None]
    sizes = [m.ess for m in metas if m.ess is not None]
    return dataclasses.replace(
        metas[0],
        logit_temperatures=temperatures,
        method=metas[0].method if len({m.method for m in metas}) == 1 else "merge",
        num_examples=sum(counts) if len(counts) == len(metas) else None,
        ess=sum(sizes) if len(sizes) == len(metas) else None,
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
