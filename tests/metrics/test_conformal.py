"""Split-conformal thresholds and sets, against tests/data/conformal.json (its `problem` says what the numbers are)."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from varlora.metrics import (
    SetThreshold,
    conformal_rank,
    conformal_scores,
    conformal_threshold,
    fewest_rows,
    prediction_sets,
    set_metrics,
    threshold_for_sets,
)
from varlora.metrics.conformal import as_fraction, share_within

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "conformal.json").read_text())
SETS = ORACLE["sets"]
THRESHOLDS = [(case["n"], case["scores"], row) for case in ORACLE["thresholds"] for row in case["rows"]]


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("n", "scores", "row"), THRESHOLDS, ids=lambda v: f"{v['alpha']}" if isinstance(v, dict) else ""
)
def test_ranks_and_thresholds_are_the_oracles(n: int, scores: list[float], row: dict[str, Any]) -> None:
    for alpha in (row["alpha"], float(row["alpha"]), Fraction(row["alpha"])):
        assert conformal_rank(n, alpha) == row["k"]
        expected = math.inf if row["q"] is None else row["q"]
        assert conformal_threshold(doubles(scores), alpha) == expected


def test_the_oracle_holds_the_trap() -> None:
    """n = 149, α = .18: 150 · .82 is 123, and a little more in floating point."""
    assert any(row["k"] != row["k_float"] for _, _, row in THRESHOLDS)
    assert conformal_rank(149, "0.18") == 123
    wrong = [row["numpy_higher"] for _, _, row in THRESHOLDS if row["q"] not in (None, row["numpy_higher"])]
    assert len(wrong) > 5  # the usual call of a quantile is one too far in most rows


@pytest.mark.parametrize("row", SETS["rows"], ids=lambda row: f"{row['score']}-{row['alpha']}")
@pytest.mark.parametrize("logs", [False, True])
def test_sets_are_the_oracles(row: dict[str, Any], logs: bool) -> None:
    calibration, test = doubles(SETS["cal_probs"]), doubles(SETS["test_probs"])
    if logs:  # as three draws that agree
        calibration, test = (probs.log()[:, None].repeat(1, 3, 1) for probs in (calibration, test))
    wanted = 1 - Fraction(row["alpha"])
    threshold = threshold_for_sets(calibration, torch.tensor(SETS["cal_labels"]), wanted, score=row["score"])
    assert threshold.value == pytest.approx(row["q"], abs=1e-12)
    assert (threshold.rows, threshold.expected) == (150, pytest.approx(row["k"] / 151))
    sets = prediction_sets(test, threshold)
    assert sets.int().tolist() == row["sets"]
    found = set_metrics(sets, torch.tensor(SETS["test_labels"]))
    assert found == pytest.approx({name: row[name] for name in found}, abs=1e-12)


@pytest.mark.parametrize("n", range(1, 20))
def test_few_rows_have_no_finite_threshold(n: int) -> None:
    threshold = conformal_threshold(torch.arange(float(n)), "0.1")
    assert threshold == (math.inf if n < 9 else math.ceil((n + 1) * 9 / 10) - 1)
    assert (n >= fewest_rows("0.1")) is math.isfinite(threshold)


@pytest.mark.parametrize(("alpha", "rows"), [("0.5", 1), ("0.05", 19), ("0.3", 3), ("0.01", 99), (0, None), ("0.9", 1)])
def test_fewest_rows(alpha: Any, rows: int | None) -> None:
    assert fewest_rows(alpha) == rows
    if rows is not None:
        assert conformal_rank(rows, alpha) <= rows
        assert rows == 1 or conformal_rank(rows - 1, alpha) == rows


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize(("n", "wanted"), [(20, "0.8"), (37, "0.9"), (120, "0.7")])
def test_new_rows_are_covered_as_often_as_promised(score: Any, n: int, wanted: str) -> None:
    """Over fresh calibration rows, the mean share of new rows covered is k/(n + 1), whatever the model is."""
    generator = torch.Generator().manual_seed(0)
    new, splits = 300, 400
    shares = []
    for _ in range(splits):
        logits = 1.5 * torch.randn(n + new, 5, generator=generator, dtype=torch.float64)
        labels = torch.multinomial((0.6 * logits).softmax(-1), 1, generator=generator).squeeze(-1)  # over-confident
        probs = logits.softmax(-1)
        threshold = threshold_for_sets(probs[:n], labels[:n], wanted, score=score)
        shares.append(set_metrics(prediction_sets(probs[n:], threshold), labels[n:])["coverage"])
    a, b = conformal_rank(n, 1 - Fraction(wanted)), n + 1 - conformal_rank(n, 1 - Fraction(wanted))
    mean = a / (n + 1)
    spread = a * b / (n + 1) ** 2 / (n + 2) * (n + 1 + new) / new  # variance of the beta-binomial share
    found = doubles(shares)
    error = 4 * math.sqrt(spread / splits)
    if score == "aps":  # all rows whose answer is the least likely class have the score 1: ties, which cover more
        assert mean - error < float(found.mean()) <= 1
        return
    assert float(found.mean()) == pytest.approx(mean, abs=error)
    assert float(found.var()) == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (99, 90), (500, 251)])
def test_the_share_that_these_rows_give_is_a_draw_of_beta(n: int, rank: int) -> None:
    beta = stats.beta(rank, n + 1 - rank)
    assert share_within(n, rank) == pytest.approx((beta.mean(), beta.ppf(0.025), beta.ppf(0.975)))
    assert share_within(n, n + 1) == (1.0, 1.0, 1.0)


def test_tied_scores_cover_more_and_never_less() -> None:
    scores = doubles([0.1] * 5 + [0.4] * 5 + [0.9] * 9)
    assert [conformal_threshold(scores, alpha) for alpha in ("0.75", "0.74", "0.5", "0.49", "0.1")] == [
        0.1,
        0.4,
        0.4,
        0.9,
        0.9,
    ]


def test_ties_between_classes_stand_or_fall_together() -> None:
    probs = doubles([[0.4, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.1]])
    assert conformal_scores(probs, "aps").tolist() == [
        pytest.approx([0.4, 1.0, 1.0, 1.0]),
        pytest.approx([0.9, 0.9, 0.9, 1.0]),
    ]


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_a_choice_that_is_not_offered_is_in_no_set(score: Any) -> None:
    log_probs = doubles([[0.7, 0.3, 0.0], [0.5, 0.3, 0.2]]).log()
    everything = SetThreshold(value=math.inf, score=score, coverage=0.9, rows=3, expected=1.0, low=1.0, high=1.0)
    assert prediction_sets(log_probs, everything).tolist() == [[True, True, False], [True, True, True]]
    assert prediction_sets(log_probs.exp(), everything).tolist() == [[True, True, False], [True, True, True]]
    tiny = doubles([[0.0, -800.0]])  # probability 0 after rounding, but offered
    assert prediction_sets(tiny, everything).tolist() == [[True, True]]


def test_rows_whose_answer_has_no_probability_count_as_missed() -> None:
    probs, labels = doubles([[0.9, 0.1]] * 8 + [[1.0, 0.0]]), torch.tensor([0] * 8 + [1])
    threshold = threshold_for_sets(probs, labels, "0.9")
    assert threshold.value == math.inf
    assert threshold.sentence == (
        "Every choice is in every set: the right answer of too many of the rows has probability 0."
    )
    assert threshold_for_sets(probs, labels, "0.8").value == pytest.approx(0.1)


def test_larger_coverages_have_larger_sets() -> None:
    calibration, labels = doubles(SETS["cal_probs"]), torch.tensor(SETS["cal_labels"])
    for score in ("lac", "aps"):
        thresholds = [
            threshold_for_sets(calibration, labels, Fraction(c, 100), score=score)  # type: ignore[arg-type]
            for c in range(5, 101, 5)
        ]
        sets = [prediction_sets(doubles(SETS["test_probs"]), threshold) for threshold in thresholds]
        assert all(bool((small <= large).all()) for small, large in pairwise(sets))
        assert bool(sets[-1].all())


def test_order_carries_nothing() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert conformal_threshold(scores, 0.2) == conformal_threshold(scores[order], 0.2)


def test_what_is_promised_is_said() -> None:
    probs, labels = doubles([[0.9, 0.1]] * 99), torch.tensor([0] * 99)
    assert threshold_for_sets(probs, labels, "0.9").sentence == (
        "At least 90 % of new rows like these 99 have the right answer in their set, on average over which 99 were "
        "drawn; 95 % of such draws give 83.4 to 95.0 %."
    )
    assert threshold_for_sets(probs[:5], labels[:5], "0.9").sentence == (
        "Every choice is in every set: 5 rows are too few to leave any out at 90 % (9 would do)."
    )
    assert "nothing less covers 100 %" in threshold_for_sets(probs, labels, 1.0).sentence


def test_sets_without_labels() -> None:
    assert set_metrics(torch.tensor([[True, False], [True, True]])) == {
        "mean_size": 1.5,
        "share_empty": 0.0,
        "share_singleton": 0.5,
    }


@pytest.mark.parametrize("value", [None, "ninety", math.nan, math.inf, "1/0"])
def test_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha is .*; give a number"):
        as_fraction(value, name="alpha")


def test_misuse() -> None:
    with pytest.raises(ValueError, match="there are 0 rows"):
        conformal_rank(0, 0.1)
    for alpha in (-0.1, 1, "1.5"):
        with pytest.raises(ValueError, match="alpha is"):
            conformal_rank(10, alpha)
    with pytest.raises(ValueError, match="1 of them NaN"):
        conformal_threshold(torch.tensor([0.1, math.nan]), 0.1)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        conformal_threshold(torch.zeros(2, 2), 0.1)
    with pytest.raises(ValueError, match="allowed: lac, aps"):
        conformal_scores(torch.tensor([[0.5, 0.5]]), "raps")  # type: ignore[arg-type]
    for coverage in (0, 1.1, -1):
        with pytest.raises(ValueError, match="coverage is"):
            threshold_for_sets(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), coverage)
    with pytest.raises(ValueError, match="unknown"):
        threshold_for_sets(torch.tensor([[0.5, 0.5]]), torch.tensor([-1]), 0.9)
    with pytest.raises(ValueError, match="give bool"):
        set_metrics(torch.zeros(2, 2))


def test_sets_are_mapies_to_the_entry() -> None:
    classification = pytest.importorskip("mapie.classification")
    base = pytest.importorskip("sklearn.base")

    class Asked(base.ClassifierMixin, base.BaseEstimator):  # type: ignore[misc, name-defined]
        """A classifier whose rows are its probabilities, as a predictor's `predict_proba` gives them."""

        classes_ = range(4)

        def fit(self, rows: Any, labels: Any) -> Any:
            return self

        def predict_proba(self, rows: Any) -> Any:
            return rows

        def predict(self, rows: Any) -> Any:
            return rows.argmax(1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    generator = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(500, 4, generator=generator, dtype=torch.float64)).softmax(-1)
    labels = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    for coverage in ("0.8", "0.9", "0.95"):
        theirs = classification.SplitConformalClassifier(Asked(), confidence_level=float(coverage), prefit=True)
        theirs.conformalize(probs[:137].numpy(), labels[:137].numpy())
        _, sets = theirs.predict_set(probs[137:].numpy())
        ours = prediction_sets(probs[137:], threshold_for_sets(probs[:137], labels[:137], coverage))
        assert ours.tolist() == sets[:, :, 0].astype(bool).tolist()
