import json
import math
from dataclasses import replace

import pytest
import torch

from varlora.metrics import METRICS, compare, evaluate
from varlora.report import Comparison, Difference, Row

ACCURACY, NLL = METRICS["accuracy"], METRICS["nll"]


def test_each_seed_is_what_evaluate_says(comparison: Comparison) -> None:
    for split in comparison.splits:
        for method, summary in comparison.summary(split).items():
            for row, evaluation in zip(comparison.runs(method, split), summary.per_seed, strict=True):
                assert evaluation == evaluate(row.log_probs, row.labels)


def test_mean_and_standard_error_over_seeds(comparison: Comparison) -> None:
    summary = comparison.summary("test")["AdamW"]
    assert summary.seeds == (21, 42)
    one, two = (evaluation["nll"] for evaluation in summary.per_seed)
    assert summary.metrics["nll"].mean == (one + two) / 2
    assert summary.metrics["nll"].se == pytest.approx(abs(one - two) / 2, rel=1e-12)
    assert (summary.train_seconds, summary.predict_seconds) == (131.5, 1.5)


def test_one_seed_has_no_standard_error(comparison: Comparison) -> None:
    rows = [row for row in comparison.rows if row.seed == 21 and row.split == "test"]
    alone = Comparison(task="wants", rows=rows, resamples=200)
    for row in rows:
        own = evaluate(row.log_probs, row.labels)
        for metric, estimate in alone.summary("test")[row.method].metrics.items():
            assert estimate.se is None
            assert estimate.mean == own[metric]


def test_differences_are_those_of_compare(comparison: Comparison) -> None:
    names = ("IVON, 10 samples", "AdamW")
    runs = [comparison.runs(name, "test") for name in names]
    expected = compare(
        *([row.log_probs for row in rows] for rows in runs), runs[0][0].labels, resamples=200, seed=comparison.seed
    )
    for metric in comparison.metrics:
        difference = comparison.difference(*names, metric=metric, split="test")
        got = (difference.value, difference.low, difference.high)
        assert got == pytest.approx((expected[metric].estimate, expected[metric].low, expected[metric].high), abs=1e-12)
        assert comparison.summary("test")[names[0]].differences[metric] == difference


def test_a_difference_reverses(comparison: Comparison) -> None:
    one = comparison.difference("AdamW", "IVON, 10 samples", metric="ece_15", split="test")
    two = comparison.difference("IVON, 10 samples", "AdamW", metric="ece_15", split="test")
    assert (one.value, one.low, one.high) == (-two.value, -two.high, -two.low)


@pytest.mark.parametrize(
    ("low", "high", "per_seed", "of_accuracy", "of_nll"),
    [
        (0.1, 0.3, (0.2, 0.21, 0.19), "better", "worse"),
        (-0.3, -0.1, (-0.2, -0.21, -0.19), "worse", "better"),
        (-0.1, 0.3, (0.2, 0.21, 0.19), "unclear", "unclear"),  # the examples leave it open
        (0.0, 0.3, (0.2, 0.21, 0.19), "unclear", "unclear"),
        (0.1, 0.3, (0.1, 0.3, 0.2), "unclear", "unclear"),  # all of one sign, and further apart than they are from 0
        (0.1, 0.3, (0.1, 0.1), "unclear", "unclear"),  # equal seeds tell nothing of their spread
        (0.1, 0.3, (0.2,), "one seed", "one seed"),
        (-0.1, 0.3, (0.2,), "one seed", "one seed"),
        (0.0, 0.0, (0.0,), "equal", "equal"),
        (0.0001, 0.0003, (0.0002, 0.00021, 0.00019), "equal", "equal"),  # clear, and shown as 0.000
        (-0.0001, 0.0003, (0.0002, 0.00021, 0.00019), "unclear", "unclear"),
        (0.1, 0.3, (-0.1, 0.5), "unclear", "unclear"),  # the seeds disagree
        (0.0, 0.0, (0.0, 0.0), "equal", "equal"),
        (math.nan, math.nan, (math.nan, math.nan), "unclear", "unclear"),
    ],
)
def test_verdicts(low: float, high: float, per_seed: tuple[float, ...], of_accuracy: str, of_nll: str) -> None:
    difference = Difference(value=sum(per_seed) / len(per_seed), low=low, high=high, per_seed=per_seed)
    assert difference.verdict(ACCURACY) == of_accuracy
    assert difference.verdict(NLL) == of_nll


def test_temperature_leaves_accuracy_exactly_equal(comparison: Comparison) -> None:
    difference = comparison.summary("test")["AdamW + temperature"].differences["accuracy"]
    assert difference.verdict(ACCURACY) == "equal"


def test_to_dict_is_json_and_complete(comparison: Comparison) -> None:
    content = comparison.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    methods = content["splits"]["other words"]["methods"]
    assert list(methods) == list(comparison.methods)
    ivon = comparison.summary("other words")["IVON, 10 samples"]
    assert methods["IVON, 10 samples"]["metrics"]["ece_15"]["high"] == ivon.metrics["ece_15"].high
    assert methods["IVON, 10 samples"]["differences"]["nll"]["low"] == ivon.differences["nll"].low
    assert methods["AdamW"]["differences"] == {}


def test_an_impossible_answer_is_none_in_json() -> None:
    log_probs = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]], dtype=torch.float64)
    row = Row(method="sure", seed=0, split="test", log_probs=log_probs, labels=torch.tensor([0, 0]))
    only = Comparison(task="t", rows=[row], reference=None, resamples=40)
    assert only.to_dict()["splits"]["test"]["methods"]["sure"]["metrics"]["nll"]["mean"] is None


def test_what_does_not_fit_is_refused(comparison: Comparison) -> None:
    rows = list(comparison.rows)
    with pytest.raises(ValueError, match=r"'SGD' is none of the methods; these are AdamW"):
        Comparison(task="t", rows=rows, reference="SGD")
    with pytest.raises(ValueError, match="seed 21 missing"):
        Comparison(task="t", rows=rows[1:])
    with pytest.raises(ValueError, match="seed 21 twice"):
        Comparison(task="t", rows=[*rows, rows[0]])
    with pytest.raises(ValueError, match="not those of the other rows"):
        Comparison(task="t", rows=[replace(rows[0], labels=rows[0].labels.flip(0)), *rows[1:]])
    with pytest.raises(ValueError, match="there is no metric 'f1'; known: accuracy"):
        Comparison(task="t", rows=rows, metrics=("f1",))
    with pytest.raises(ValueError, match="not compared by 'perplexity'; there are accuracy"):
        Comparison(task="t", rows=rows, metrics=("perplexity",))
    with pytest.raises(ValueError, match="no rows"):
        Comparison(task="t", rows=[])
    with pytest.raises(ValueError, match="no split 'dev'; the comparison has test, other words"):
        comparison.summary("dev")
    with pytest.raises(ValueError, match=r"log_probs \(120, 4\) and labels \(119,\)"):
        Row(method="m", seed=0, split="test", log_probs=torch.zeros(120, 4), labels=rows[0].labels[1:])


def test_all_right_and_all_wrong_are_as_far_apart_as_their_exact_intervals() -> None:
    def row(method: str, right: bool, rows: int, seed: int) -> Row:
        probs = torch.tensor([[0.9, 0.1] if right else [0.1, 0.9]] * rows, dtype=torch.float64)
        labels = torch.zeros(rows, dtype=torch.int64)
        return Row(method=method, seed=seed, split="test", log_probs=probs.log(), labels=labels)

    def found(rows: int) -> Comparison:
        both = [row(method, method == "A", rows, seed) for method in "AB" for seed in (0, 1)]
        return Comparison(task="t", rows=both, reference="B", resamples=40)

    twelve = found(12)
    alone = twelve.summary("test")["A"].metrics["accuracy"]
    assert (alone.mean, alone.high, round(alone.low, 4)) == (1.0, 1.0, 0.7354)
    difference = twelve.difference("A", "B", metric="accuracy", split="test")
    assert (difference.value, round(difference.low, 4), difference.high) == (1.0, 0.4707, 1.0)
    assert found(2).difference("A", "B", metric="accuracy", split="test").low < 0
