"""How to predict with a posterior, chosen on validation rows: the stages of the choice, without files and models.

    scale      τ (the covariance's factor; 0: the mean) and T (what divides the logits), at the run's number of draws
    draws      the number of draws, at the τ and T of before
    pruning    the largest fraction that costs nothing, at all of that

Each stage begins from the choice of the one before and leaves it only for what lowers the NLL by more than noise, and
by what is worth a change (`varlora.metrics.selection`). A T is drawn towards 1 by the prior of
`varlora.metrics.temperature`, judged by cross-fitting, K folds, and then fitted to all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from varlora.metrics import (
    cross_fitted,
    is_free,
    largest_free,
    likeliest_temperature,
    mean_log_probs,
    one_standard_error,
    paired_error,
)
from varlora.metrics.scoring import log_losses
from varlora.metrics.temperature import PRIOR_SD
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction import divide_logits
from varlora.runs.space import Space

LOGIT_TEMPERATURES = (0.25, 50.0)
"""A smaller T makes every draw a vote: few validation rows tell what a row costs that no draw votes for. A larger one
leaves nothing of the prediction."""

Predict = Callable[[PredictionConfig], Tensor]
"""Log-probabilities (N, S, C) of the validation rows, predicted in one way but divided by no T."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to predict that was tried, and how it did on the validation rows.

    Attributes:
        stage: "scale", "draws" or "pruning".
        config: the way to predict.
        fitted: whether its T was fitted on these rows, and its NLL therefore cross-fitted.
        nll: mean over the rows, in nats.
        difference: mean paired difference of the NLL from that of the stage's beginning.
        standard_error: of that difference.
        default: whether the stage began here.
        chosen: whether it ended here.
    """

    stage: str
    config: PredictionConfig
    fitted: bool = False
    nll: float = math.nan
    difference: float = math.nan
    standard_error: float = math.nan
    default: bool = False
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the stages chose.

    Attributes:
        candidates: all that was tried, stage by stage.
        chosen: the way to predict.
        kept: whether that is the default.
        nll_before: of the default.
        nll_after: of the chosen; cross-fitted where T was fitted.
        difference: mean paired difference of the two, after minus before.
        standard_error: of that difference.
        fewest_samples: the fewest draws that cost nothing beside the chosen number; None where that was not looked at.
        free_fraction: the largest fraction that can be pruned for nothing; None where that was not looked at.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    kept: bool
    nll_before: float
    nll_after: float
    difference: float
    standard_error: float
    fewest_samples: int | None = None
    free_fraction: float | None = None


def choose(predict: Predict, labels: Tensor, space: Space) -> Choice:
    """Goes through the stages.

    Args:
        predict: gives log-probabilities of the validation rows; asked once for each τ and fraction, at the largest S.
        labels: (N,) class indices.
        space: what there is to choose from.

    Raises:
        ValueError: the log-probabilities cannot be judged: an answer has probability 0, or is none.

    Example:
        >>> right = torch.tensor([[0.9, 0.6], [0.7, 0.8], [0.6, 0.9], [0.8, 0.7]] * 10, dtype=torch.float64)
        >>> draws = torch.stack([right, 1 - right], dim=2).log()             # two draws say (right, wrong)
        >>> space = Space(temperatures=(1.0,), samples=(1, 2), fractions=(), by="snr", fit_logits=False,
        ...               mode="samples", start=1.0, draws=1, logit_temperatures={})
        >>> choice = choose(lambda config: draws[:, :config.samples], torch.zeros(40, dtype=torch.int64), space)
        >>> choice.chosen.config.samples, choice.kept, choice.fewest_samples
        (1, True, 1)
    """
    scale = _scale(predict, labels, space)
    start, before = scale.beginning
    chosen, after = scale.end
    candidates = scale.candidates
    fewest = free = None
    if chosen.config.mode == "samples" and len(space.samples) > 1:
        draws = _draws(predict, labels, space, chosen)
        chosen, after = draws.end
        candidates += draws.candidates
        fewest = draws.fewest(space.standard_errors)
    if space.fractions:
        pruning = _pruning(predict, labels, space, chosen)
        free = pruning.end[0].config.prune
        candidates += pruning.candidates
        if space.apply_pruning and free > 0:
            # The difference is taken at one T, so that of the fitted T, cross-fitted, is added to it.
            after = after + pruning.end[1] - pruning.beginning[1]
            chosen = pruning.end[0]
    difference, error = paired_error(after, before)
    return Choice(
        candidates=candidates,
        chosen=chosen,
        kept=chosen.config == start.config,
        nll_before=float(before.mean()),
        nll_after=float(after.mean()),
        difference=difference,
        standard_error=error,
        fewest_samples=fewest,
        free_fraction=free,
    )


def losses(log_probs: Tensor, labels: Tensor, logit_temperature: float = 1.0) -> Tensor:
    """The loss of every row (N,), of log-probabilities (N, S, C) averaged over the draws after division by T."""
    return log_losses(mean_log_probs(divide_logits(log_probs, logit_temperature)), labels)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The candidates of a stage with their losses (K, N)."""

    candidates: tuple[Candidate, ...]
    losses: Tensor

    @property
    def beginning(self) -> tuple[Candidate, Tensor]:
        return next((c, row) for c, row in zip(self.candidates, self.losses, strict=True) if c.default)

    @property
    def end(self) -> tuple[Candidate, Tensor]:
        return next((c, row) for c, row in zip(self.candidates, self.losses, strict=True) if c.chosen)

    def fewest(self, standard_errors: float | None) -> int:
        chosen, reference = self.end
        return min(
            _samples(c)
            for c, row in zip(self.candidates, self.losses, strict=True)
            if _samples(c) == _samples(chosen) or is_free(row, reference, standard_errors=standard_errors)
        )


def _scale(predict: Predict, labels: Tensor, space: Space) -> _Stage:
    """τ and T. The simplest: nothing changed, T alone, τ alone, both; the τ nearest to 1, the mean last."""
    tried: list[tuple[Candidate, Tensor]] = []
    simplicity = []
    for temperature in space.temperatures:
        plain = Candidate(stage="scale", config=space.config(temperature))
        log_probs = predict(plain.config)
        ways = [(plain, losses(log_probs, labels, _divisor(plain)))]
        if space.fit_logits and (fitted := _fitted(plain, log_probs, labels)) is not None:
            ways.append(fitted)
        for candidate, row in ways:
            moved = temperature != space.start
            distance = abs(math.log2(temperature)) if temperature > 0 else math.inf
            tried.append((candidate, row))
            simplicity.append((moved + candidate.fitted, moved, distance))
    default = next(i for i, (c, _) in enumerate(tried) if c.config.temperature == space.start and not c.fitted)
    rows = torch.stack([row for _, row in tried])
    chosen = one_standard_error(rows, simplicity=simplicity, default=default, standard_errors=space.standard_errors)
    return _marked(tried, default, chosen)


def _draws(predict: Predict, labels: Tensor, space: Space, before: Candidate) -> _Stage:
    """The number of draws: as few more as do. Fewer than before are only looked at.

    The average over more draws of one distribution is no worse in expectation (Jensen), so that a lower NLL of fewer
    draws is luck, of the draws or of the rows.
    """
    log_probs = predict(replace(before.config, samples=max(space.samples)))
    tried: list[tuple[Candidate, Tensor]] = []
    for samples in space.samples:
        some = log_probs[:, :samples]
        plain = replace(before, stage="draws", config=replace(before.config, samples=samples), fitted=False)
        if not before.fitted:
            tried.append((plain, losses(some, labels, _divisor(plain))))
        elif (fitted := _fitted(plain, some, labels)) is not None:
            tried.append(fitted)
    default = next(i for i, (c, _) in enumerate(tried) if _samples(c) == _samples(before))
    more = [row for c, row in tried[default:]]
    simplicity = [_samples(c) for c, _ in tried[default:]]
    chosen = one_standard_error(torch.stack(more), simplicity=simplicity, standard_errors=space.standard_errors)
    return _marked(tried, default, default + chosen)


def _pruning(predict: Predict, labels: Tensor, space: Space, before: Candidate) -> _Stage:
    """The largest fraction that costs nothing, all at the T of before."""

    def of(config: PredictionConfig) -> tuple[Candidate, Tensor]:
        candidate = replace(before, stage="pruning", config=config)
        return candidate, losses(predict(config), labels, _divisor(before))

    tried = [of(before.config)]

    def costs() -> Any:
        for fraction in space.fractions:
            tried.append(of(replace(before.config, prune=fraction, prune_by=space.by)))
            yield fraction, tried[-1][1]

    free = largest_free(costs(), tried[0][1], standard_errors=space.standard_errors)
    return _marked(tried, 0, next(i for i, (c, _) in enumerate(tried) if c.config.prune == free))


def _fitted(plain: Candidate, log_probs: Tensor, labels: Tensor) -> tuple[Candidate, Tensor] | None:
    """The same with T fitted to all rows and its cross-fitted losses; None where the best T is out of its range."""
    best = likeliest_temperature(log_probs, labels, prior_sd=PRIOR_SD, warn=False)
    if not LOGIT_TEMPERATURES[0] <= best <= LOGIT_TEMPERATURES[1]:
        return None
    config = replace(plain.config, logit_temperature=best)
    return replace(plain, config=config, fitted=True), cross_fitted(log_probs, labels)[0]


def _marked(tried: list[tuple[Candidate, Tensor]], default: int, chosen: int) -> _Stage:
    reference = tried[default][1]
    candidates = []
    for i, (candidate, row) in enumerate(tried):
        difference, error = paired_error(row, reference)
        candidates.append(
            replace(
                candidate,
                nll=float(row.mean()),
                difference=difference,
                standard_error=error,
                default=i == default,
                chosen=i == chosen,
            )
        )
    return _Stage(candidates=tuple(candidates), losses=torch.stack([row for _, row in tried]))


def _divisor(candidate: Candidate) -> float:
    return candidate.config.logit_temperature or 1.0


def _samples(candidate: Candidate) -> int:
    return candidate.config.samples or 0
