"""Votes of draws, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from varlora.metrics import AnswerRows, evaluate_rows, evaluate_rows_with_intervals, majority


@pytest.mark.parametrize(
    ("row", "winner", "share"),
    [
        (["4", "5", "4"], "4", 2 / 3),
        (["5", "4", "4", "5"], "5", 1 / 2),  # equally many: an earlier draw's
        ([None, "4", "5", "4"], "4", 1 / 2),
        ([None, None, "5"], "5", 1 / 3),  # nothing is no candidate
        ([None, None], None, 0.0),
        (["7"], "7", 1.0),
    ],
)
def test_the_majority(row: list[str | None], winner: str | None, share: float) -> None:
    winners, shares = majority([row])
    assert winners == (winner,)
    assert shares.tolist() == pytest.approx([share])
    assert shares.dtype == torch.float64


def test_two_readings_of_the_same_rows() -> None:
    answers = [["1", "1", "2", "1"], ["3", "3", "3", "3"], ["5", "4", None, "5"], ["6", "7", "8", "9"]]
    found = evaluate_rows(AnswerRows(answers, ["1", "3", "4", "6"]))
    # shares .75 right, 1 right, .5 wrong, .25 right
    assert found == pytest.approx(
        {
            "exact_match": 3 / 4,
            "answered": 15 / 16,
            "exact_match_per_draw": (3 + 4 + 1 + 1) / 16,
            "agreement": 2.5 / 4,
            "agreement_ece_10": (0.25 + 0 + 0.5 + 0.75) / 4,
            "agreement_auroc": 2 / 3,
        }
    )


def test_one_draw_has_no_agreement() -> None:
    assert evaluate_rows(AnswerRows([["1"], [None]], ["1", "2"])) == {"exact_match": 0.5, "answered": 0.5}


def test_nothing_can_be_ranked_where_all_are_right() -> None:
    assert math.isnan(evaluate_rows(AnswerRows([["1", "1"], ["2", "1"]], ["1", "2"]))["agreement_auroc"])


def test_intervals_are_of_the_same_numbers() -> None:
    answers = [[str(i), str(i if i % 3 else 0), str(i)] for i in range(30)]
    references = [str(i if i % 4 else -1) for i in range(30)]
    numbers = evaluate_rows(AnswerRows(answers, references))
    intervals = evaluate_rows_with_intervals(AnswerRows(answers, references), resamples=200)
    assert {name: one.estimate for name, one in intervals.items()} == pytest.approx(numbers)
    assert intervals["exact_match"].low < numbers["exact_match"] < intervals["exact_match"].high


@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        ([["1"], ["1", "2"]], ["1", "2"], r"\[1, 2\] answers each"),
        ([[]], ["1"], r"\[0\] answers each"),
        ([], [], r"\[\] answers each"),
        ([["1"]], ["1", "2"], "2 right answers for 1 rows"),
    ],
)
def test_what_does_not_fit_is_refused(answers: list[list[str]], references: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_rows(AnswerRows(answers, references))


def test_agreement_is_binned_in_tenths() -> None:
    answers = [["1"] * 17 + ["2"] * 3, ["1"] * 18 + ["2"] * 2]  # .85, right, and .9, wrong: one bin of ten
    found = evaluate_rows(AnswerRows(answers, ["1", "2"]))
    assert found["agreement_ece_10"] == pytest.approx(abs(1 - 0.85 - 0.9) / 2)


def test_a_share_without_spread_has_the_exact_interval() -> None:
    found = evaluate_rows_with_intervals(AnswerRows([["1"]] * 12, ["1"] * 12), resamples=200)["exact_match"]
    assert (found.estimate, found.high, round(found.low, 4)) == (1.0, 1.0, 0.7354)  # 0.025^(1/12)
