"""How a trained posterior does: its noise beside its weights, what sampling gains on held-out rows, whether λ settled.

For row n with label y, the mean's probabilities p_m and those p_s of S draws, over N labelled validation rows

    d = mean_n [ℓ_S(n) − ℓ_m(n)],     ℓ_S = −log (1/S) Σ_s p_s(y),     ℓ_m = −log p_m(y)          (sampled − mean)
    c = mean_n [ℓ_1(n) − ℓ_m(n)],     ℓ_1 = −(1/S) Σ_s log p_s(y)                                 (one draw − mean)

each with the standard error of the paired difference. c is what the noise costs, d what is left of it after averaging;
d ≤ c by Jensen's inequality. Sampling helps if d is below 0 by more than one standard error, hurts if it is above 0 by
more than one, and does nothing otherwise.

Everything is computed from the posterior and from stored predictions for the validation rows: no model is needed, and
no row of another split is looked at.

Source: our choice (docs/health.md); the rule is that of `varlora.metrics.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from varlora.metrics import mean_log_probs, mutual_information
from varlora.metrics.selection import paired_error
from varlora.optim.ess_control import BOUNDS
from varlora.posterior import DropoutMasks, PointMass, Posterior
from varlora.report.scales import ScaleGroup, scales_of

FEWEST_ROWS = 20
"""Fewer rows cannot tell a gain from noise; `varlora tune` asks for as many."""
LARGE = 2.0
"""Standard errors that log T̂ may be away from 0 at the end."""
Verdict = Literal["helps", "does nothing", "hurts"]
Source = Literal["validation", "train"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationLogProbs:
    """Stored predictions for validation rows.

    Attributes:
        mean: (N, 1, C), log-probabilities at the point.
        sampled: (N, S, C), of the draws; None where nothing was drawn. C is 1 for completions.
        labels: (N,), below 0 where there is none.

    Raises:
        ValueError: the shapes are not those of the same rows.
    """

    mean: Tensor
    sampled: Tensor | None
    labels: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.mean, self.sampled, self.labels) if t is not None]
        rows = {shape[:1] for shape in shapes}
        if len(rows) != 1 or self.mean.shape[1] != 1 or len({shape[2:] for shape in shapes[:-1]}) != 1:
            raise ValueError(
                f"predictions and labels have the shapes {', '.join(map(str, shapes))}; they must be (N, 1, C) at the "
                "mean, (N, S, C) of the draws and (N,) for the same rows. Predict the rows again."
            )


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A mean difference of losses on the same rows, in nats, and its standard error."""

    difference: float
    standard_error: float

    @property
    def verdict(self) -> Verdict:
        """What it says by the rule of one standard error; on the boundary, nothing.

        Example:
            >>> [Paired(difference=d, standard_error=0.25).verdict for d in (-0.5, -0.25, 0.25, 0.5)]
            ['helps', 'does nothing', 'does nothing', 'hurts']
        """
        if abs(self.difference) <= self.standard_error:
            return "does nothing"
        return "helps" if self.difference < 0 else "hurts"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the draws answer alike.

    Attributes:
        rows: validation rows, labelled or not.
        single: share of the draws' answers that are the mean's.
        all_draws: share of the rows on which every draw's answer is the mean's.
        mutual_information: mean over the rows, in nats.
    """

    rows: int
    single: float
    all_draws: float
    mutual_information: float


@dataclass(frozen=True, kw_only=True)
class HeldOutEnd:
    """What the rows that steered λ said at the end of training.

    Attributes:
        source: "validation", or "train" for training rows that were withheld for a while.
        rows: how many.
        log_temperature: log T̂, > 0 where predictions were over-confident.
        error: its standard error.
    """

    source: Source
    rows: int
    log_temperature: float
    error: float

    @property
    def off(self) -> bool:
        """Whether log T̂ is further from 0 than two standard errors."""
        return abs(self.log_temperature) > LARGE * self.error


@dataclass(frozen=True, kw_only=True)
class Health:
    """The numbers of a health report; None and empty: not defined for this posterior, or not known.

    Attributes:
        kind: the posterior's kind.
        method: how it was trained.
        draws: S, how many draws predictions average.
        linearised: whether the method's own predictions are those of the linearised model.
        completions: whether the losses are those of whole completions.
        groups: noise beside weights.
        exact: tensors that are known exactly, and in no group.
        rate: of dropout masks.
        num_examples: N.
        ess: λ at the end.
        ess_start: where a steered λ started.
        hessian_moved: median |h/h0 − 1|.
        hessian_kept: whether h was kept at h0 (β2 = 1).
        held_out: what the rows that steered λ said.
        sampling: d, the NLL of the average over draws minus the mean's.
        one_draw: c, the NLL of single draws minus the mean's.
        sampling_rows: on how many rows both were measured.
        sampling_source: which rows those were.
        in_training: whether that was the last measurement in training, and not one of stored predictions.
        unknown: why there is no `sampling`.
        derived: whether the posterior was pruned, tempered or merged after training.
        agreement: how far the draws answer alike.
        validation_rows: labelled validation rows with stored predictions.
        logit_temperature: what divides the logits of the method's own predictions.
        tuned: whether `varlora tune` has chosen how to predict.
    """

    kind: str
    method: str
    draws: int
    linearised: bool = False
    completions: bool = False
    groups: tuple[ScaleGroup, ...] = ()
    exact: int = 0
    rate: float | None = None
    num_examples: int | None = None
    ess: float | None = None
    ess_start: float | None = None
    hessian_moved: float | None = None
    hessian_kept: bool = False
    held_out: HeldOutEnd | None = None
    sampling: Paired | None = None
    one_draw: Paired | None = None
    sampling_rows: int = 0
    sampling_source: Source = "validation"
    in_training: bool = False
    unknown: str = ""
    derived: bool = False
    agreement: Agreement | None = None
    validation_rows: int = 0
    logit_temperature: float = 1.0
    tuned: bool = False

    @property
    def can_be_tuned(self) -> bool:
        """Whether there are validation rows to tune on."""
        return self.validation_rows >= FEWEST_ROWS

    @property
    def bound(self) -> Literal["lower", "upper"] | None:
        """The bound that λ ended at, if it did."""
        if self.ess is None or self.ess_start is None:
            return None
        for name, bound in (("lower", BOUNDS[0]), ("upper", BOUNDS[1])):
            if math.isclose(self.ess, bound * self.ess_start, rel_tol=1e-6):
                return name  # type: ignore[return-value]
        return None


def health_of(q: Posterior, *, samples: int, validation: ValidationLogProbs | None = None) -> Health:
    """The health of a posterior as training left it; what `varlora tune` chose does not change it.

    Args:
        q: the posterior.
        samples: S, how many draws predictions are to average.
        validation: stored predictions for validation rows, by the method's own mode and at the point.

    Raises:
        ValueError: the predictions are not of the same rows.

    Example:
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.ones(2)}, precision={"w": torch.full((2,), 4.0)})
        >>> health = health_of(q, samples=10)
        >>> health.groups[0].ratio, health.unknown
        (0.5, 'there are no predictions for validation rows')
    """
    meta, diagnostics = q.meta, q.meta.diagnostics or {}
    own = "linearised" if meta.linearised else "samples"
    if isinstance(q, PointMass):
        return Health(kind=q.kind, method=meta.method, draws=1, tuned=meta.tuned is not None)
    groups, exact = scales_of(q)
    held_out = diagnostics.get("held_out") or {}
    derived = any(operation.get("op") != "tune" for operation in meta.history)
    if derived:
        held_out = {}  # it was measured of another posterior, before the operation
    moved = diagnostics.get("hessian_moved") or {}
    measured = _sampling(validation, held_out)
    return Health(
        kind=q.kind,
        method=meta.method,
        draws=samples if validation is None or validation.sampled is None else validation.sampled.shape[1],
        linearised=meta.linearised,
        completions=validation is not None and validation.mean.shape[-1] == 1,
        groups=groups,
        exact=exact,
        rate=q.rate if isinstance(q, DropoutMasks) else None,
        num_examples=meta.num_examples,
        ess=meta.ess,
        ess_start=held_out.get("ess_start"),
        hessian_moved=moved.get("overall"),
        hessian_kept=bool(moved) and not any(moved.get("by_tensor", {"": moved["overall"]}).values()),
        held_out=_end(held_out),
        derived=derived,
        agreement=_agreement(validation),
        validation_rows=0 if validation is None else int((validation.labels >= 0).sum()),
        logit_temperature=meta.logit_temperature_of(own),
        tuned=meta.tuned is not None,
        **measured,
    )


def _sampling(validation: ValidationLogProbs | None, held_out: Mapping[str, Any]) -> dict[str, Any]:
    """Sampled against mean loss, by the stored predictions or by the last measurement in training; or why not."""
    found, unknown = _of_stored(validation)
    if found is not None:
        return found
    if held_out.get("measurements") and held_out["rows"] >= FEWEST_ROWS:
        gain = Paired(difference=-held_out["sampling_gain"], standard_error=held_out["sampling_gain_error"])
        source = "train" if held_out["source"] == "train" else "validation"
        return {
            "sampling": gain,
            "sampling_rows": held_out["rows"],
            "sampling_source": source,
            "in_training": True,
        }
    return {"unknown": unknown}


def _of_stored(validation: ValidationLogProbs | None) -> tuple[dict[str, Any] | None, str]:
    if validation is None:
        return None, "there are no predictions for validation rows"
    if validation.sampled is None:
        return None, "validation rows were predicted at the mean only"
    known = validation.labels >= 0
    rows = int(known.sum())
    if rows < FEWEST_ROWS:
        few = f"only {rows} validation row{'s' * (rows != 1)} {'have' if rows != 1 else 'has'} a label"
        return None, f"{few}, and it takes {FEWEST_ROWS}" if rows else "the validation rows have no labels"
    index = validation.labels[known][:, None]
    at_mean = _losses(mean_log_probs(validation.mean[known]), index)
    averaged = _losses(mean_log_probs(validation.sampled[known]), index)
    single = -validation.sampled[known].gather(-1, index[:, None].expand(-1, validation.sampled.shape[1], 1)).mean(1)
    single = single[:, 0]
    if not all(bool(losses.isfinite().all()) for losses in (at_mean, averaged)):
        return None, "some validation row's answer has probability 0, so that no difference of NLLs is finite"
    costs = _paired(single, at_mean) if bool(single.isfinite().all()) else None
    return {"sampling": _paired(averaged, at_mean), "one_draw": costs, "sampling_rows": rows}, ""


def _losses(log_probs: Tensor, index: Tensor) -> Tensor:
    return -log_probs.gather(-1, index)[:, 0]


def _paired(losses: Tensor, reference: Tensor) -> Paired:
    difference, error = paired_error(losses, reference)
    return Paired(difference=difference, standard_error=error)


def _agreement(validation: ValidationLogProbs | None) -> Agreement | None:
    if validation is None or validation.sampled is None or validation.mean.shape[-1] == 1:
        return None
    same = validation.sampled.argmax(-1) == validation.mean.argmax(-1)
    return Agreement(
        rows=len(same),
        single=float(same.double().mean()),
        all_draws=float(same.all(1).double().mean()),
        mutual_information=float(mutual_information(validation.sampled).mean()),
    )


def _end(held_out: Mapping[str, Any]) -> HeldOutEnd | None:
    if not held_out.get("measurements"):  # there are no rows, or nothing that was measured was finite
        return None
    return HeldOutEnd(
        source="train" if held_out["source"] == "train" else "validation",
        rows=held_out["rows"],
        log_temperature=held_out["log_temperature"],
        error=held_out["log_temperature_error"],
    )
