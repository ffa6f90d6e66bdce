"""TFB: AdamW's adapter made random without training, with the largest noise that its predictions bear.

For each adapted module, with the thin SVD B = U diag(D) Vᵀ, the adapter is written as

    B' = U diag(D),   A' = Vᵀ A                                        (B' A' = B A: the same function)
    A'_ij ~ N(mean, (σ_q / D_i)²),   B' known exactly

so that a column of ΔW = B' A' has covariance σ_q² U Uᵀ: the same in all directions that B reaches. One σ_q is shared by
all modules; it is the largest for which

    |NLL(σ_q) − NLL(0)| ≤ tolerance · NLL(0)

on an anchor set of training examples labelled with the deterministic adapter's own answers. NLL(σ) is that of the
probabilities averaged over S draws, as in prediction. The draws are the same ε for every σ and come in mirrored pairs
(our choice), so the NLL is a smooth function of σ without a linear part. σ_q is bracketed by doubling, then bisected;
what is returned satisfies the condition.

Source: Shi et al. 2024, arXiv 2412.05723.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varlora.adapters import adapter_config, factor_keys, load_into, trained_tensors
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job
from varlora.methods.options import TfbOptions
from varlora.metrics import mean_log_probs
from varlora.posterior import DiagonalGaussian, PointMass, PosteriorMeta
from varlora.prediction.prediction import predict

logger = logging.getLogger(__name__)

FIRST_SCALE = 0.01
LARGEST_SCALE = 10.0
SMALLEST_SCALE = 1e-6
RELATIVE_STEP = 0.05
"""σ_q is found to 5 %."""
SMALLEST_SINGULAR_VALUE = 1e-17
"""Below it, (D / σ_q)² at the largest σ_q would leave float32."""


class NoScaleError(ValueError):
    """No noise, however small, satisfies the condition."""


@dataclass(frozen=True, kw_only=True)
class Tfb(TfbOptions, AdamW):
    """AdamW, then the largest noise on the adapter that changes its predictions by no more than a tolerance.

    The anchor set is drawn with the run's seed, and is all training rows if there are fewer.
    """

    def fit(self, job: Job) -> Fit:
        """The Gaussian on the rotated adapter, which the model then holds.

        Raises:
            ValueError: the task has no classes, or an adapted module is no linear layer with A and B both trained.
            NoScaleError: the anchor set's NLL is so small that no noise stays within the tolerance.
        """
        if job.readout is None:
            raise ValueError("method 'tfb' watches the NLL of classes; completions have none. Use 'swag' or 'ivon'.")
        pairs = factor_keys(trained_tensors(job.model), adapter_config(job.model))
        fit = super().fit(job)
        rotated = rotate(fit.posterior.mean, pairs)
        load_into(job.model, rotated.mean)
        q, diagnostics = self._widest(job, rotated, fit.posterior.meta)
        meta = dataclasses.replace(q.meta, diagnostics=diagnostics)
        return Fit(posterior=dataclasses.replace(q, meta=meta), log=fit.log)

    def _widest(self, job: Job, rotated: Rotated, meta: PosteriorMeta) -> tuple[DiagonalGaussian, dict[str, Any]]:
        readout = job.readout
        assert readout is not None
        generator = torch.Generator().manual_seed(job.arguments.seed)
        chosen = torch.randperm(len(job.train), generator=generator)[: self.anchor_examples].sort().values
        batches = list(job.batches(job.train.select(chosen.tolist())))
        at_mean = predict(job.model, PointMass(mean=rotated.mean), batches, 0, readout=readout).log_probs[:, 0]
        nll_at_mean = -at_mean.amax(1).mean().item()
        own_labels = at_mean.argmax(1, keepdim=True)
        tried: dict[float, float] = {}

        def bearable(scale: float) -> bool:
            q = rotated.gaussian(scale, meta)
            seed = job.arguments.seed + 1  # not the draws that the run predicts with
            log_probs = predict(job.model, q, batches, self.draws, readout=readout, seed=seed).log_probs
            tried[scale] = -mean_log_probs(log_probs).gather(1, own_labels).mean().item()
            return abs(tried[scale] - nll_at_mean) <= self.tolerance * nll_at_mean

        scale = largest_satisfying(bearable)
        return rotated.gaussian(scale, meta), {
            "sigma_q": scale,
            "nll": tried[scale],
            "nll_at_mean": nll_at_mean,
            "anchor_examples": len(chosen),
            "tried": [[s, nll] for s, nll in sorted(tried.items()) if math.isfinite(nll)],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotated:
    """An adapter in the coordinates of its B's singular vectors.

    Attributes:
        mean: all tensors by checkpoint key, A' and B' among them.
        singular_values: D of each module, (r,), by the key of its A'; 0 where a rank has no effect.
    """

    mean: Mapping[str, Tensor]
    singular_values: Mapping[str, Tensor]

    def gaussian(self, scale: float, meta: PosteriorMeta) -> DiagonalGaussian:
        """The posterior at σ_q = `scale`: sd σ_q / D_i on row i of A'; everything else is known exactly."""
        precision = {key: torch.full_like(m, math.inf, dtype=torch.float32) for key, m in self.mean.items()}
        for key, values in self.singular_values.items():
            rows = torch.where(values > 0, (values / scale).square(), math.inf)
            precision[key] = rows.float()[:, None].expand_as(self.mean[key]).contiguous()
        return DiagonalGaussian(mean=self.mean, precision=precision, meta=meta)


def rotate(mean: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]) -> Rotated:
    """B' = U D and A' = Vᵀ A from the thin SVD B = U D Vᵀ; other tensors stay.

    A singular value below rounding error (all of them, if B never moved from 0) counts as 0: row i of A' and column i
    of B' are then exactly 0.

    Args:
        mean: all tensors by checkpoint key.
        pairs: keys of A (r, in) and B (out, r).

    Raises:
        ValueError: every B is 0, so the adapter has no effect.
    """
    rotated, singular_values = dict(mean), {}
    for key_a, key_b in pairs:
        a, b = mean[key_a], mean[key_b]
        u, values, vt = torch.linalg.svd(b.double(), full_matrices=False)
        rounding = values.amax() * max(b.shape) * torch.finfo(torch.float32).eps
        values = torch.where(values > rounding.clamp(min=SMALLEST_SINGULAR_VALUE), values, 0.0)
        kept = (values > 0).double()
        rank, count = a.shape[0], len(values)  # a wide B has fewer singular values than columns
        rotated[key_a] = torch.zeros_like(a)
        rotated[key_a][:count] = (kept[:, None] * (vt @ a.double())).to(a.dtype)
        rotated[key_b] = torch.zeros_like(b)
        rotated[key_b][:, :count] = (u * values).to(b.dtype)
        singular_values[key_a] = torch.cat([values, values.new_zeros(rank - count)])
    if not any(bool(values.any()) for values in singular_values.values()):
        raise ValueError("every lora_B is 0, so the adapter has no effect and no noise on A has any. Train it first.")
    return Rotated(mean=rotated, singular_values=singular_values)


def largest_satisfying(
    ok: Callable[[float], bool],
    *,
    first: float = FIRST_SCALE,
    smallest: float = SMALLEST_SCALE,
    largest: float = LARGEST_SCALE,
    relative_step: float = RELATIVE_STEP,
) -> float:
    """The largest number that satisfies a condition that holds for small numbers and fails for large ones.

    Args:
        ok: the condition.
        first: where the search begins; it doubles, or halves, until it has a bracket.
        smallest: where halving gives up.
        largest: where doubling ends; returned, with a warning, if it satisfies the condition.
        relative_step: how close below the first number that fails.

    Returns:
        A number that was tried and satisfies the condition; one at most `relative_step` larger fails it.

    Raises:
        NoScaleError: no number from `smallest` on satisfies it.

    Example:
        >>> found = largest_satisfying(lambda x: x <= 0.3, relative_step=0.01)
        >>> 0.3 / 1.01 < found <= 0.3
        True
    """
    if ok(first):
        low, high = first, min(2 * first, largest)
        while ok(high):
            if high == largest:
                logger.warning("the noise could grow to %g and stay within the tolerance; using that", largest)
                return largest
            low, high = high, min(2 * high, largest)
    else:
        low, high = first / 2, first
        while not ok(low):
            low, high = low / 2, low
            if low < smallest:
                raise NoScaleError(
                    f"no sigma_q down to {smallest:g} keeps the anchor set's NLL within the tolerance: the model is so "
                    "sure of its answers that any change is large next to its NLL. Raise the tolerance, or train less."
                )
    while high > low * (1 + relative_step):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ok(middle) else (low, middle)
    return low
