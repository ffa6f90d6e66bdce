"""Answers in words or numbers by several draws: the majority's answer, and whether its share can be trusted.

One draw gives one answer to each row, or none that could be read. The answer that most draws give is the answer, the
share of the draws that give it the confidence (`agreement`).

Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models", arXiv:2203.11171
(there over sampled texts of one model; here over draws of the weights).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from varlora.metrics.bootstrap import Interval, bootstrap
from varlora.metrics.calibration import expected_calibration_error
from varlora.metrics.ranking import auroc

Answers = Sequence[Sequence[str | None]]
"""N rows of S answers, one for each draw; None where a draw gave none that could be read."""


def majority(answers: Answers) -> tuple[tuple[str | None, ...], Tensor]:
    """The answer that most draws give, and the share of all draws that give it.

    Of answers with equally many votes the one that an earlier draw gave is taken. A draw without an answer votes for
    nothing, but counts in the share; where no draw has one, the answer is None and the share 0.

    Args:
        answers: (N, S).

    Returns:
        N answers, and their shares (N,), float64.

    Raises:
        ValueError: If there is no row, or rows have different numbers of draws, or none.

    Example:
        >>> majority([["4", "5", "4"], [None, "7", None]])
        (('4', '7'), tensor([0.6667, 0.3333], dtype=torch.float64))
    """
    draws = sorted({len(row) for row in answers})
    if len(draws) != 1 or draws == [0]:
        raise ValueError(f"the rows have {draws} answers each: give one for each of the same draws, at least one.")
    winners: list[str | None] = []
    shares = []
    for row in answers:
        votes = Counter(answer for answer in row if answer is not None)
        winner = max(votes, key=votes.__getitem__, default=None)  # the first of equals, in the order of the draws
        winners.append(winner)
        shares.append(votes[winner] / draws[0] if winner is not None else 0.0)
    return tuple(winners), torch.tensor(shares, dtype=torch.float64)


def evaluate_answers(answers: Answers, references: Sequence[str]) -> dict[str, float]:
    """How often the majority's answer is right, and what its share says.

    Keys: `exact_match`, the share of rows whose answer is the reference; `answered`, the share of (row, draw) pairs
    with an answer. Of two draws or more also `exact_match_per_draw` (the mean of the draws' own), `agreement` (mean
    share of the draws that gave the answer), `agreement_ece_10` (expected calibration error of the share as a
    probability of being right) and `agreement_auroc` (are right answers those that more draws gave; NaN if all or
    none are right).

    Args:
        answers: (N, S).
        references: N right answers, written as the answers are.

    Raises:
        ValueError: As `majority`, and if there is not one reference for each row.

    Example:
        >>> found = evaluate_answers([["4", "5", "4"], ["7", "7", "7"]], ["4", "8"])
        >>> found["exact_match"], round(found["exact_match_per_draw"], 4), round(found["agreement"], 4)
        (0.5, 0.3333, 0.8333)
    """
    rows = _Rows(answers, references)
    return {name: float(value) for name, value in rows.metrics(torch.arange(len(references))).items()}


def evaluate_answers_with_intervals(
    answers: Answers, references: Sequence[str], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """`evaluate_answers`, each number with its percentile bootstrap interval over the rows.

    Args:
        answers: (N, S).
        references: N right answers.
        resamples: Number of resamples.
        level: Probability mass of the intervals.
        seed: Of the resamples.

    Raises:
        ValueError: As `evaluate_answers`, and if `resamples` are too few for `level`.

    Example:
        >>> evaluate_answers_with_intervals([["4"], ["7"], ["1"], ["2"]], ["4", "8", "1", "2"])["exact_match"]
        Interval(estimate=0.75, low=0.25, high=1.0, level=0.95)
    """
    rows, number = _Rows(answers, references), len(references)
    shares = dict.fromkeys(("exact_match", "answered", "exact_match_per_draw", "agreement"), number)
    return bootstrap(rows.metrics, number, width=4, shares=shares, resamples=resamples, level=level, seed=seed)


class _Rows:
    """What the metrics need of each row, worked out once."""

    def __init__(self, answers: Answers, references: Sequence[str]) -> None:
        if len(answers) != len(references):
            raise ValueError(f"{len(references)} right answers for {len(answers)} rows: give one for each.")
        winners, self.share = majority(answers)
        self.draws = len(answers[0])
        self.correct = torch.tensor([a == b for a, b in zip(winners, references, strict=True)]).double()
        pairs = list(zip(answers, references, strict=True))
        self.each = torch.tensor([[answer == right for answer in row] for row, right in pairs]).double().mean(1)
        self.answered = torch.tensor([[answer is not None for answer in row] for row in answers]).double().mean(1)

    def metrics(self, indices: Tensor) -> dict[str, Tensor]:
        """All metrics of the rows at `indices` (..., N); each is (...,)."""
        share, correct = self.share[indices], self.correct[indices]
        found = {"exact_match": correct.mean(-1), "answered": self.answered[indices].mean(-1)}
        if self.draws == 1:
            return found
        return {
            **found,
            "exact_match_per_draw": self.each[indices].mean(-1),
            "agreement": share.mean(-1),
            "agreement_ece_10": expected_calibration_error(share, correct, bins=10),
            "agreement_auroc": auroc(share, correct),
        }
