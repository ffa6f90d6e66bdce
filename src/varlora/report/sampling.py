"""What sampling gains over the mean on validation rows whose predictions are stored, and whether draws agree.

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

Source: our choice (docs/health.md); the rule is that of `varlora.metrics.selection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from varlora.io.words import counted
from varlora.metrics import clopper_pearson, cross_fitted, fit_temperature, mean_log_probs, mutual_information
from varlora.metrics.scoring import log_losses
from varlora.metrics.selection import FEWEST_ROWS, WORTHWHILE, paired_error, standard_errors_for

SamplingVerdict = Literal["helps", "no gain", "hurts"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationLogProbs:
    """Stored predictions for validation rows.

    Attributes:
        mean: (N, 1, C), log-probabilities at the point.
        sampled: (N, S, C), of the draws; None where nothing was drawn. C is 1 for completions.
        labels: (N,), below 0 where there is none, or the row may decide nothing.
        reported: how many rows with a label may decide nothing, since they are test rows, too.
        mean_temperature: T, which has divided the logits at the point.
        sampled_temperature: T, which has divided those of the draws.

    Raises:
        ValueError: the shapes are not those of the same rows.
    """

    mean: Tensor
    sampled: Tensor | None
    labels: Tensor
    reported: int = 0
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

    @property
    def at_most_as_often(self) -> bool:
        """Whether the point is right no more often than the most frequent answer, on rows enough to say so."""
        return self.right <= self.most_frequent and self.rows >= FEWEST_ROWS


def measure_sampling(validation: ValidationLogProbs | None) -> dict[str, Any]:
    """The fields of `Health` about sampling, by stored predictions; or `unknown` alone, why they tell nothing."""
    if validation is None:
        return {"unknown": "there are no predictions for validation rows"}
    if validation.sampled is None:
        return {"unknown": "validation rows were predicted at the mean only"}
    known = validation.labels >= 0
    rows = int(known.sum())
    if rows < FEWEST_ROWS:
        return {"unknown": _too_few(rows, validation.reported)}
    labels = validation.labels[known]
    mean = _undivided(validation.mean[known], validation.mean_temperature)
    sampled = _undivided(validation.sampled[known], validation.sampled_temperature)
    at_one = [log_losses(mean_log_probs(log_probs), labels) for log_probs in (mean, sampled)]
    if not all(bool(losses.isfinite().all()) for losses in at_one):
        return {"unknown": "some validation row's answer has probability 0, so that no difference of NLLs is finite"}
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
    return measured


def _too_few(rows: int, reported: int) -> str:
    """Why rows with a label tell nothing, beside as many that are reported."""
    if not rows and reported:
        return "the validation rows that have a label are test rows, too"
    if not rows:
        return "the validation rows have no labels"
    few = f"only {counted(rows, 'validation row')} {'has' if rows == 1 else 'have'} a label"
    few += f" and {'is no test row' if rows == 1 else 'are no test rows'}" * bool(reported)
    return f"{few}, and it takes {FEWEST_ROWS}"


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


def agreement_of(validation: ValidationLogProbs | None) -> Agreement | None:
    """How far the draws answer alike; None where nothing was drawn, and of completions."""
    if validation is None or validation.sampled is None or validation.mean.shape[-1] == 1:
        return None
    same = validation.sampled.argmax(-1) == validation.mean.argmax(-1)
    return Agreement(
        rows=len(same),
        single=float(same.double().mean()),
        all_draws=float(same.all(1).double().mean()),
        mutual_information=float(mutual_information(validation.sampled).mean()),
    )


def learned_of(validation: ValidationLogProbs | None) -> Learned | None:
    """How often the point is right; None where no row has a label, and of completions."""
    if validation is None or validation.mean.shape[-1] == 1:
        return None
    known = validation.labels >= 0
    labels = validation.labels[known]
    if not len(labels):
        return None
    right = int((validation.mean[known][:, 0].argmax(-1) == labels).sum())
    return Learned(rows=len(labels), right=right, most_frequent=int(labels.bincount().max()))
