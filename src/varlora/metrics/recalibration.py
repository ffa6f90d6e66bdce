"""Recalibrated probabilities: a temperature, one for each group of rows, or Venn–Abers; kept if better than noise.

    T_g = T · T'_g,   T fitted to all rows, T'_g to the group's, divided by T before

Both by `fit_temperature`: T'_g stays 1 unless the group's rows say more than noise does, the luckiest of G groups
included, and is shrunk towards 1 then. So few rows decide little, and a group that is new has the common T.

The ways are compared by the NLL of every row under a fit to the other folds' rows; a way is taken if it is better by
more than noise and by something worth having (`varlora.metrics.selection`), and the simplest of those as good as it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from varlora.io.words import counted
from varlora.metrics.scoring import log_losses
from varlora.metrics.selection import FEWEST_ROWS, one_standard_error, paired_error
from varlora.metrics.temperature import FOLDS, fit_temperature
from varlora.metrics.uncertainty import mean_log_probs
from varlora.metrics.venn_abers import VennAbers, fit_venn_abers

Way = Literal["temperature", "group_temperature", "venn_abers"]
WAYS: tuple[Way, ...] = ("temperature", "group_temperature", "venn_abers")
"""The simplest first."""


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """What divides the logits.

    Attributes:
        common: T, of rows whose group has none of its own.
        by_group: T_g of the groups that have.
        rows: how many labelled rows they are from.
    """

    common: float
    rows: int
    by_group: Mapping[str, float] = field(default_factory=dict)

    def apply(self, log_probs: Tensor, groups: Sequence[str | None]) -> Tensor:
        """Log-probabilities (N, S, C), each row's divided by its T and normalised again.

        Args:
            log_probs: (N, S, C).
            groups: N names.

        Example:
            >>> logits = torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]])
            >>> temperatures = Temperatures(common=1.0, rows=100, by_group={"law": 2.0})
            >>> temperatures.apply(logits, ["law", None]).exp()[:, 0, 1].round(decimals=3).tolist()
            [0.731, 0.881]
        """
        own = torch.tensor([self.by_group.get(name or "", self.common) for name in groups], dtype=torch.float64)
        return torch.log_softmax(log_probs.double() / own[:, None, None], dim=-1)


Recalibration = Temperatures | VennAbers


def recalibrated(by: Recalibration | None, log_probs: Tensor, groups: Sequence[str | None]) -> Tensor:
    """Log-probabilities (N, S, C); of Venn–Abers, which are of the draws' average, (N, 1, C).

    Args:
        by: how; None: as they are.
        log_probs: (N, S, C).
        groups: N names.
    """
    if by is None:
        return log_probs
    if isinstance(by, Temperatures):
        return by.apply(log_probs, groups)
    return by.probs(mean_log_probs(log_probs).exp()).log().unsqueeze(1)


def fit_recalibration(way: Way, log_probs: Tensor, labels: Tensor, groups: Sequence[str | None]) -> Recalibration:
    """One way, fitted to labelled rows.

    Args:
        way: which.
        log_probs: (N, S, C), of rows that the model was not trained on.
        labels: (N,) class indices.
        groups: N names; only "group_temperature" goes by them.

    Raises:
        ValueError: as of `fit_temperature`.
    """
    if way == "venn_abers":
        return fit_venn_abers(mean_log_probs(log_probs).exp(), labels)
    common = fit_temperature(log_probs, labels, warn=False).value
    if way == "temperature":
        return Temperatures(common=common, rows=len(labels))
    names = sorted({name for name in groups if name is not None})
    by_group = {}
    for name in names:
        rows = torch.tensor([one == name for one in groups])
        fit = fit_temperature(log_probs[rows] / common, labels[rows], candidates=len(names), warn=False)
        if not fit.kept:
            by_group[name] = common * fit.value
    return Temperatures(common=common, rows=len(labels), by_group=by_group)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A way to recalibrate, and what it came to.

    Attributes:
        way: which; None: as they are.
        nll: mean loss of rows that were not fitted to, nats.
        difference: from the probabilities as they are.
        standard_error: of that, paired.
    """

    way: Way | None
    nll: float
    difference: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class RecalibrationChoice:
    """What was tried, and what was taken.

    Attributes:
        tried: the probabilities as they are, and each way.
        taken: the way; None: as they are.
        fitted: it, fitted to all rows; None with it.
    """

    tried: tuple[Tried, ...]
    taken: Way | None
    fitted: Recalibration | None

    @property
    def sentence(self) -> str:
        """What was taken, and why, in words."""
        best = next(one for one in self.tried if one.way == self.taken)
        listed = ", ".join(f"{_WORDS[one.way]} {one.nll:.4g}" for one in self.tried)
        if self.fitted is None:
            return f"Probabilities as they are: no way is better by more than noise (cross-validated NLL: {listed})."
        return (
            f"Probabilities by {_WORDS[self.taken]} from {counted(self.fitted.rows, 'row')}: cross-validated NLL "
            f"{best.difference:+.4f} ± {best.standard_error:.4f} ({listed})."
        )


def choose_recalibration(
    ways: Sequence[Way],
    log_probs: Tensor,
    labels: Tensor,
    groups: Sequence[str | None] | None = None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> RecalibrationChoice:
    """The way that is better than the probabilities as they are by more than noise, the simplest of those as good.

    Args:
        ways: to try.
        log_probs: (N, S, C), of rows that the model was not trained on.
        labels: (N,) class indices.
        groups: N names; None: "group_temperature" cannot be tried.
        folds: K; the rows are dealt out at random.
        seed: decides how.

    Raises:
        ValueError: there are fewer than 20 rows, a way needs groups, or some row's answer has probability 0.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(400, 1, 3, generator=generator, dtype=torch.float64)
        >>> labels = torch.multinomial(logits[:, 0].softmax(-1), 1, generator=generator)[:, 0]
        >>> choose_recalibration(WAYS[::2], (4 * logits).log_softmax(-1), labels).taken     # four times too sure
        'temperature'
        >>> choose_recalibration(WAYS[::2], logits.log_softmax(-1), labels).taken is None
        True
    """
    rows = len(labels)
    if rows < FEWEST_ROWS:
        raise ValueError(
            f"probabilities are recalibrated on {FEWEST_ROWS} rows or more, and there are {rows}. Give more labelled "
            "rows, or leave the probabilities as they are."
        )
    if groups is None and "group_temperature" in ways:
        raise ValueError("a temperature for each group needs the rows' groups.")
    named = groups if groups is not None else [None] * rows
    as_they_are = log_losses(mean_log_probs(log_probs.double()), labels)
    if not bool(as_they_are.isfinite().all()):
        raise ValueError("some row's answer has probability 0, for which the NLL of nothing can make up.")
    dealt = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)) % folds
    losses = [as_they_are]
    for way in ways:
        own = torch.empty(rows, dtype=torch.float64)
        for fold in range(folds):
            held, rest = dealt == fold, dealt != fold
            fitted = fit_recalibration(way, log_probs[rest], labels[rest], _of(named, rest))
            new = recalibrated(fitted, log_probs[held], _of(named, held))
            own[held] = log_losses(mean_log_probs(new), labels[held])
        losses.append(own)
    stacked = torch.stack(losses)
    simplicity = [0, *(1 + WAYS.index(way) for way in ways)]
    index = one_standard_error(stacked, simplicity=simplicity)
    taken = None if index == 0 else ways[index - 1]
    tried = [Tried(way=None, nll=float(as_they_are.mean()), difference=0.0, standard_error=0.0)]
    for way, own in zip(ways, losses[1:], strict=True):
        difference, error = paired_error(own, as_they_are)
        tried.append(Tried(way=way, nll=float(own.mean()), difference=difference, standard_error=error))
    fitted_to_all = None if taken is None else fit_recalibration(taken, log_probs, labels, named)
    return RecalibrationChoice(tried=tuple(tried), taken=taken, fitted=fitted_to_all)


def _of(groups: Sequence[str | None], rows: Tensor) -> list[str | None]:
    return [name for name, kept in zip(groups, rows.tolist(), strict=True) if kept]


_WORDS: Mapping[Way | None, str] = {
    None: "as they are",
    "temperature": "a temperature",
    "group_temperature": "a temperature for each group",
    "venn_abers": "Venn–Abers",
}
