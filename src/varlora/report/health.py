"""How a trained posterior does: its noise beside its weights, what sampling gains on held-out rows, whether λ settled.

An average over draws is flatter than the mean's prediction, and so is the mean's divided by a temperature: the two are
compared where each has its own. For row n with label y, the mean's probabilities p_m,T and those p_s,T of S draws, all
of logits divided by T, over N labelled validation rows

    d = mean_n [ℓ_S(n) − ℓ_m(n)],     ℓ_S = −log (1/S) Σ_s p_s,T_S(y),     ℓ_m = −log p_m,T_m(y)      (sampled − mean)
    c = mean_n [ℓ_1(n) − ℓ'_m(n)],    ℓ_1 = −(1/S) Σ_s log p_s,T_S(y),     ℓ'_m = −log p_m,T_S(y)     (one draw − mean)

each with the standard error s of the paired difference. T_S and T_m are fitted to the other folds' rows by one rule
(`cross_fitted`). c is what the noise costs at equal temperature, d what is left of it after averaging. Sampling helps
if d < 0, hurts if d > 0, and gives no gain where

    |d| ≤ max(k(N)·s, 0.005 nat)

since S passes are not worth less than that (`WORTHWHILE`); k(N), between 1 and 2, is `standard_errors_for`. The rows
that steered λ compare the two at the T that training has left for each (`varlora.ivon.ess_control`).

Everything is computed from the posterior and from stored predictions for the validation rows: no model is needed, and
no row of another split is looked at.

Source: our choice (docs/health.md); the rule is that of `varlora.metrics.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from varlora.io.words import counted
from varlora.ivon.ess_control import BOUNDS
from varlora.metrics import clopper_pearson, cross_fitted, fit_temperature, mean_log_probs, mutual_information
from varlora.metrics.scoring import log_losses
from varlora.metrics.selection import FEWEST_ROWS, WORTHWHILE, paired_error, standard_errors_for
from varlora.posterior import DropoutMasks, PointMass, Posterior
from varlora.posterior.held_out_record import ERRORS
from varlora.report.course import Course
from varlora.report.scales import ScaleGroup, scales_of

SamplingVerdict = Literal["helps", "no gain", "hurts"]
Source = Literal["validation", "train"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationLogProbs:
    """Stored predictions for validation rows.

    Attributes:
        mean: (N, 1, C), log-probabilities at the point.
        sampled: (N, S, C), of the draws; None where nothing was drawn. C is 1 for completions.
        labels: (N,), below 0 where there is none.
        mean_temperature: T, which has divided the logits at the point.
        sampled_temperature: T, which has divided those of the draws.

    Raises:
        ValueError: the shapes are not those of the same rows.
    """

    mean: Tensor
    sampled: Tensor | None
    labels: Tensor
    mean_temperature: float = 1.0
    sampled_temperature: float = 1.0

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


def verdict_of(gain: Paired, rows: int) -> SamplingVerdict:
    """What a difference of NLLs, sampled minus mean, says of S passes in place of one; on the boundary, no gain.

    Args:
        gain: the difference.
        rows: on how many rows.

    Example:
        >>> of = lambda d, s, rows: verdict_of(Paired(difference=d, standard_error=s), rows)
        >>> of(-0.12, 0.03, 300), of(-0.03, 0.03, 300), of(0.12, 0.03, 300)
        ('helps', 'no gain', 'hurts')
        >>> of(-0.0009, 0.0001, 10_000)                                        # sure, and not worth the passes
        'no gain'
    """
    if not abs(gain.difference) > max(WORTHWHILE, standard_errors_for(rows) * gain.standard_error):
        return "no gain"
    return "helps" if gain.difference < 0 else "hurts"


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
class Learned:
    """How often the point is right on labelled validation rows, beside the most frequent answer.

    Attributes:
        rows: how many.
        right: how often the point's answer is the label.
        most_frequent: how often the most frequent label is.
    """

    rows: int
    right: int
    most_frequent: int

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the accuracy."""
        return clopper_pearson(self.right, self.rows)

    @property
    def beats_most_frequent(self) -> bool:
        """Whether all of the accuracy's interval lies above the share of the most frequent label.

        Example:
            >>> Learned(rows=100, right=60, most_frequent=55).beats_most_frequent
            False
        """
        return self.interval[0] > self.most_frequent / self.rows


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
        "learned": _learned(validation),
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
        agreement=_agreement(validation),
        validation_rows=0 if validation is None else int((validation.labels >= 0).sum()),
        logit_temperature=meta.logit_temperature_of(own),
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
    measured, unknown = _of_stored(validation)
    if measured is not None:
        return measured
    rows = _rows_told_by(held_out) if held_out.get("measurements") else 0
    if rows >= FEWEST_ROWS:
        at = "_at_temperature" if "sampling_gain_at_temperature" in held_out else ""  # else both at T = 1
        gain = Paired(difference=-held_out[f"sampling_gain{at}"], standard_error=held_out[f"sampling_gain{at}_error"])
        source = "train" if held_out["source"] == "train" else "validation"
        temperatures = (held_out["mean_remaining_temperature"], held_out["remaining_temperature"]) if at else None
        return {
            "sampling": gain,
            "temperatures": temperatures,
            "sampling_rows": rows,
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
        few = f"only {counted(rows, 'validation row')} {'has' if rows == 1 else 'have'} a label"
        return None, f"{few}, and it takes {FEWEST_ROWS}" if rows else "the validation rows have no labels"
    labels = validation.labels[known]
    mean = _undivided(validation.mean[known], validation.mean_temperature)
    sampled = _undivided(validation.sampled[known], validation.sampled_temperature)
    at_one = [log_losses(mean_log_probs(log_probs), labels) for log_probs in (mean, sampled)]
    if not all(bool(losses.isfinite().all()) for losses in at_one):
        return None, "some validation row's answer has probability 0, so that no difference of NLLs is finite"
    measured: dict[str, Any] = {"sampling_rows": rows}
    if mean.shape[-1] == 1 or not bool(_of_label(sampled, labels).isfinite().all()):  # there is no T that fits
        at_mean, averaged, of_each = *at_one, torch.ones(rows, dtype=torch.float64)
    else:
        at_mean, _ = cross_fitted(mean, labels)
        averaged, of_each = cross_fitted(sampled, labels)
        measured["temperatures"] = tuple(
            fit_temperature(log_probs, labels, warn=False).value for log_probs in (mean, sampled)
        )
    measured["sampling"] = _paired(averaged, at_mean)
    mean_alike, single = (_divided(log_probs, of_each) for log_probs in (mean, sampled))
    costs = -_of_label(single, labels).mean(1)
    if bool(costs.isfinite().all()):
        measured["one_draw"] = _paired(costs, log_losses(mean_log_probs(mean_alike), labels))
    return measured, ""


def _undivided(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the logits that a temperature has divided."""
    return log_probs if temperature == 1 else torch.log_softmax(log_probs * temperature, dim=-1)


def _divided(log_probs: Tensor, temperatures: Tensor) -> Tensor:
    """Log-probabilities (N, S, C) of the logits divided by each row's own temperature (N,)."""
    if log_probs.shape[-1] == 1:
        return log_probs
    return torch.log_softmax(log_probs / temperatures[:, None, None], dim=-1)


def _of_label(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(N, S)."""
    return log_probs.gather(-1, labels[:, None, None].expand(-1, log_probs.shape[1], 1))[..., 0]


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


def _learned(validation: ValidationLogProbs | None) -> Learned | None:
    if validation is None or validation.mean.shape[-1] == 1:
        return None
    known = validation.labels >= 0
    labels = validation.labels[known]
    if len(labels) < FEWEST_ROWS:
        return None
    right = int((validation.mean[known][:, 0].argmax(-1) == labels).sum())
    return Learned(rows=len(labels), right=right, most_frequent=int(labels.bincount().max()))


def _rows_told_by(held_out: Mapping[str, Any]) -> int:
    """How many rows' answers the last measurements are worth; all rows where an older record does not say."""
    return round(float(held_out.get("effective_rows", held_out["rows"])))


def _end(held_out: Mapping[str, Any]) -> HeldOutEnd | None:
    if not held_out.get("measurements"):  # there are no rows, or nothing that was measured was finite
        return None
    return HeldOutEnd(
        source="train" if held_out["source"] == "train" else "validation",
        rows=_rows_told_by(held_out),
        log_temperature=held_out["log_temperature"],
        error=held_out["log_temperature_error"],
    )
