"""How a trained posterior does: its noise beside its weights, what sampling gains on held-out rows, whether λ settled.

Everything is computed from the posterior and from stored predictions for the validation rows: no model is needed, and
no row of another split is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from varlora.ivon.ess_control import BOUNDS
from varlora.metrics.selection import FEWEST_ROWS
from varlora.posterior import DropoutMasks, PointMass, Posterior
from varlora.posterior.held_out_record import ERRORS
from varlora.report.course import Course
from varlora.report.sampling import (
    Agreement,
    Learned,
    Paired,
    SamplingVerdict,
    ValidationLogProbs,
    agreement_of,
    learned_of,
    measure_sampling,
    verdict_of,
)
from varlora.report.scales import ScaleGroup, scales_of

Source = Literal["validation", "train"]


@dataclass(frozen=True, kw_only=True)
class HeldOutEnd:
    """What the rows that steered λ said at the end of training.

    Attributes:
        source: "validation", or "train" for training rows that were withheld for a while.
        rows: how many rows' answers that is worth: a short training asks a part of them only.
        log_temperature: log T̂, > 0 where predictions were over-confident.
        error: its standard error.
    """

    source: Source
    rows: int
    log_temperature: float
    error: float

    @property
    def paired(self) -> Paired:
        """log T̂ with its standard error."""
        return Paired(difference=self.log_temperature, standard_error=self.error)

    @property
    def off(self) -> bool:
        """Whether log T̂ is further from 0 than chance leaves it (`ess_control.ERRORS`)."""
        return abs(self.log_temperature) > ERRORS * self.error


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
        fits: of a variance that follows the fit, by parameter group: the mean training loss, the sum of learning rates
            and the variance (`varlora.ivon.fit_variance`).
        held_out: what the rows that steered λ said.
        unsteered: why no rows steered λ, where some were to.
        sampling: d, the NLL of the average over draws minus the mean's.
        one_draw: c, the NLL of single draws minus the mean's.
        sampling_rows: on how many rows both were measured.
        sampling_source: which rows those were.
        in_training: whether that was the last measurement in training, and not one of stored predictions.
        temperatures: (T of the mean, T of the draws) that these rows ask for, each of which divided its logits; None:
            both were compared at T = 1.
        unknown: why there is no `sampling`.
        derived: whether the posterior was pruned, tempered or merged after training.
        agreement: how far the draws answer alike.
        validation_rows: labelled validation rows with stored predictions.
        logit_temperature: what divides the logits of the method's own predictions.
        fitted: whether validation rows were asked for it when training had ended; 1 is then their answer.
        tuned: whether `varlora tune` has chosen how to predict.
        learned: how often the point is right, beside the most frequent answer; None where there are too few rows.
        course: how far the training went; None where its log is not known.
        steps: optimizer steps, those that were skipped included.
        skipped_steps: how many of them were left out for a number that was not finite.
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
    fits: tuple[Mapping[str, Any], ...] = ()
    held_out: HeldOutEnd | None = None
    unsteered: str = ""
    sampling: Paired | None = None
    one_draw: Paired | None = None
    sampling_rows: int = 0
    sampling_source: Source = "validation"
    in_training: bool = False
    temperatures: tuple[float, float] | None = None
    unknown: str = ""
    derived: bool = False
    agreement: Agreement | None = None
    validation_rows: int = 0
    logit_temperature: float = 1.0
    fitted: bool = False
    tuned: bool = False
    learned: Learned | None = None
    course: Course | None = None
    steps: int = 0
    skipped_steps: int = 0

    @property
    def verdict(self) -> SamplingVerdict | None:
        """What the rows say of sampling; None where they say nothing."""
        return None if self.sampling is None else verdict_of(self.sampling, self.sampling_rows)

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


def health_of(
    q: Posterior, *, samples: int, validation: ValidationLogProbs | None = None, course: Course | None = None
) -> Health:
    """The health of a posterior as training left it; what `varlora tune` chose does not change it.

    Args:
        q: the posterior.
        samples: S, how many draws predictions are to average.
        validation: stored predictions for validation rows, by the method's own mode and at the point.
        course: how far the training went.

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
    taken, skipped = skipped_steps(diagnostics)
    trained: dict[str, Any] = {
        "learned": learned_of(validation),
        "course": course,
        "steps": taken + skipped,
        "skipped_steps": skipped,
    }
    if isinstance(q, PointMass):
        return Health(kind=q.kind, method=meta.method, draws=1, tuned=meta.tuned is not None, **trained)
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
        fits=() if derived else tuple(diagnostics.get("fit_variance") or ()),
        held_out=_end(held_out),
        unsteered=str(held_out.get("why") or ""),
        derived=derived,
        agreement=agreement_of(validation),
        validation_rows=0 if validation is None else int((validation.labels >= 0).sum()),
        logit_temperature=meta.logit_temperature_of(own),
        fitted=own in (diagnostics.get("logit_temperature") or {}),
        tuned=meta.tuned is not None,
        **measured,
        **trained,
    )


def skipped_steps(diagnostics: Mapping[str, Any]) -> tuple[int, int]:
    """How many optimizer steps a training took and how many it skipped for a number that was not finite.

    Args:
        diagnostics: `meta.diagnostics`; 0 where nothing was counted.

    Example:
        >>> skipped_steps({"steps": 2, "skipped_steps": 4}), skipped_steps({})
        ((2, 4), (0, 0))
    """
    return int(diagnostics.get("steps") or 0), int(diagnostics.get("skipped_steps") or 0)


def _sampling(validation: ValidationLogProbs | None, held_out: Mapping[str, Any]) -> dict[str, Any]:
    """Sampled against mean loss, by the stored predictions or by the last measurement in training; or why not."""
    measured = measure_sampling(validation)
    rows = _rows_told_by(held_out) if held_out.get("measurements") else 0
    if "unknown" not in measured or rows < FEWEST_ROWS:
        return measured
    at = "_at_temperature" if "sampling_gain_at_temperature" in held_out else ""  # else both at T = 1
    return {
        "sampling": Paired(
            difference=-held_out[f"sampling_gain{at}"], standard_error=held_out[f"sampling_gain{at}_error"]
        ),
        "temperatures": (held_out["mean_remaining_temperature"], held_out["remaining_temperature"]) if at else None,
        "sampling_rows": rows,
        "sampling_source": _source(held_out),
        "in_training": True,
    }


def _source(held_out: Mapping[str, Any]) -> Source:
    return "train" if held_out["source"] == "train" else "validation"


def _rows_told_by(held_out: Mapping[str, Any]) -> int:
    """How many rows' answers the last measurements are worth; all rows where an older record does not say."""
    return round(float(held_out.get("effective_rows", held_out["rows"])))


def _end(held_out: Mapping[str, Any]) -> HeldOutEnd | None:
    if not held_out.get("measurements"):  # there are no rows, or nothing that was measured was finite
        return None
    return HeldOutEnd(
        source=_source(held_out),
        rows=_rows_told_by(held_out),
        log_temperature=held_out["log_temperature"],
        error=held_out["log_temperature_error"],
    )
