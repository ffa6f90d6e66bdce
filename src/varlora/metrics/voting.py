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

from varlora.metrics.rows import Rows, given, per_row

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


class AnswerRows(Rows):
    """Final answers of N rows by S draws, beside the right ones.

    Args:
        answers: (N, S).
        references: N right answers, written as the answers are.
        log_likelihood: (N,) of the texts that the answers were read from, per token; None: not known.
        finished: (N, S) whether each text came to its end.
        num_tokens: (N, S) tokens of each text.

    Attributes:
        correct: (..., N) whether the majority's answer is right, as 0 and 1.
        share: (..., N) share of the draws that give it; None of a single draw, which has nothing to agree with.
        log_likelihood, finished, num_tokens: as given, (..., N) or (..., N, S).

    Raises:
        ValueError: As `majority`, and if there is not one reference for each row.
    """

    kind = "final_answers"
    correct: per_row[Tensor] = given()
    share: per_row[Tensor | None] = given()
    log_likelihood: per_row[Tensor | None] = given()
    finished: per_row[Tensor | None] = given()
    num_tokens: per_row[Tensor | None] = given()

    def __init__(
        self,
        answers: Answers,
        references: Sequence[str],
        *,
        log_likelihood: Tensor | None = None,
        finished: Tensor | None = None,
        num_tokens: Tensor | None = None,
    ) -> None:
        if len(answers) != len(references):
            raise ValueError(f"{len(references)} right answers for {len(answers)} rows: give one for each.")
        winners, share = majority(answers)
        pairs = list(zip(answers, references, strict=True))
        super().__init__(
            len(references),
            width=4,
            share=share if len(answers[0]) > 1 else None,
            correct=torch.tensor([a == b for a, b in zip(winners, references, strict=True)]).double(),
            each=torch.tensor([[answer == right for answer in row] for row, right in pairs]),
            read=torch.tensor([[answer is not None for answer in row] for row in answers]),
            log_likelihood=log_likelihood,
            finished=finished,
            num_tokens=num_tokens,
        )

    @per_row
    def correct_per_draw(self) -> Tensor:
        """(..., N) share of the draws that are right."""
        return self.given["each"].double().mean(1)  # type: ignore[no-any-return]

    @per_row
    def answered(self) -> Tensor:
        """(..., N) share of the draws that have an answer."""
        return self.given["read"].double().mean(1)  # type: ignore[no-any-return]
