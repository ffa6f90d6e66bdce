"""Means over seeds, wins and losses, frontiers: against closed forms, scipy's own intervals, and one seed at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy import stats
from verdict_rates import rates

from report.conftest import made_up_rows  # type: ignore[import-not-found]
from varlora.metrics import METRICS, compare, evaluate, shown_metrics
from varlora.report import Comparison, Row
from varlora.report.seeds import over_seeds
from varlora.report.statistics import (
    Tally,
    frontier_means,
    tallies,
)
from varlora.report.study import Block, Frontier, FrontierPoint, Study

IVON, ADAMW, SCALED = "IVON, 10 samples", "AdamW", "AdamW + temperature"
SPLIT = "test"


def test_three_seeds_by_hand() -> None:
    found = over_seeds([1.0, 2.0, 6.0])
    # s² = (4 + 1 + 9) / 2, se = s / √3; t(2; .975) = 4.302652729749464
    assert (found.mean, found.seeds) == (3.0, 3)
    assert found.se == pytest.approx(math.sqrt(7 / 3), rel=1e-14)
    assert found.low == pytest.approx(3 - 4.302652729749464 * math.sqrt(7 / 3), rel=1e-12)
    assert found.high == pytest.approx(3 + 4.302652729749464 * math.sqrt(7 / 3), rel=1e-12)


def test_the_interval_is_scipys_at_every_level() -> None:
    values = [0.3, 0.31, 0.29, 0.305, 0.36]
    for level in (0.5, 0.9, 0.95, 0.99):
        found = over_seeds(values, level)
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_one_seed_has_no_interval_and_its_verdict_is_that_it_is_one() -> None:
    found = over_seeds([0.5])
    assert (found.mean, found.se, found.low, found.high) == (0.5, None, None, None)
    assert found.verdict(METRICS["nll"]) == found.verdict(METRICS["nll"], examples=(0.4, 0.6)) == "one seed"


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="need one value or more"):
        over_seeds([])
    with pytest.raises(ValueError, match="a level between 0 and 1"):
        over_seeds([1.0, 2.0], 1.0)


@pytest.mark.parametrize(
    ("values", "metric", "verdict"),
    [
        ((0.2, 0.21, 0.19), "accuracy", "better"),
        ((0.2, 0.21, 0.19), "nll", "worse"),
        ((-0.2, -0.21, -0.19), "nll", "better"),
        ((0.2, -0.21, 0.19), "nll", "unclear"),
        ((0.0, 0.0, 0.0), "nll", "equal"),
        ((math.nan, 0.1, 0.2), "nll", "unclear"),
        ((0.0004, 0.00041, 0.00039), "nll", "equal"),
        ((0.0006, 0.00061, 0.00059), "nll", "worse"),
        ((0.0004, 0.00041, 0.00039), "accuracy", "equal"),  # 0.04 %
    ],
)
def test_verdicts_of_the_seeds_alone(values: Sequence[float], metric: str, verdict: str) -> None:
    assert over_seeds(values).verdict(METRICS[metric]) == verdict


def test_the_rounding_of_resampled_sums_makes_equal_predictions_no_less_equal() -> None:
    zero = over_seeds((0.0, 0.0))
    assert zero.verdict(METRICS["nll"], examples=(-5.6e-17, 5.6e-17)) == "equal"
    assert zero.verdict(METRICS["nll"], examples=(-1e-9, 5.6e-17)) == "unclear"


@pytest.mark.parametrize(("seeds", "most", "by_signs"), [(1, 0.0, 0.5), (3, 0.065, 0.2), (5, 0.095, 0.05)])
def test_how_seldom_no_difference_is_called_clear(seeds: int, most: float, by_signs: float) -> None:
    """Where the seeds' luck is nothing beside the examples', as large, or four times it."""
    found = [rates(seeds, luck, rows=100, trials=500) for luck in (0.0, 1.0, 4.0)]
    assert max(now for _, now in found) <= most
    assert max(before for before, _ in found) > by_signs


@pytest.mark.parametrize(
    "values",
    [
        (0.02, 0.02, 0.02),
        (-0.3, -0.3),
        (0.8 - 0.7, 0.9 - 0.8, 0.7 - 0.6),  # 0.1 each time, but for the rounding
        (1e6, 1e6 + 1e-7),
        (0.0, 0.0, 0.0),
    ],
)
def test_equal_differences_tell_nothing_of_their_spread(values: Sequence[float]) -> None:
    found = over_seeds(values)
    assert (found.se, found.low, found.high) == (0.0, None, None)
    assert found.mean == pytest.approx(values[0], rel=1e-9)
    assert {found.verdict(METRICS[metric]) for metric in ("accuracy", "nll")} == {"unclear" if any(values) else "equal"}


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_what_is_not_finite_equals_nothing(strange: float) -> None:
    for values in ((0.1, 0.1, strange), (strange, strange)):
        assert math.isnan(over_seeds(values).se or 0.0)


def test_differences_that_nearly_agree_are_clear() -> None:
    found = over_seeds((0.02, 0.02, 0.02 + 1e-9))
    assert found.low is not None
    assert found.low > 0
    assert found.verdict(METRICS["accuracy"]) == "better"


def test_equal_differences_of_all_seeds_are_not_clear_however_clear_the_examples() -> None:
    right = {"AdamW": 20, "IVON": 32}
    labels = torch.zeros(40, dtype=torch.int64)
    rows = [
        Row(
            method=name,
            seed=seed,
            split=SPLIT,
            log_probs=torch.tensor([[0.8, 0.2]] * count + [[0.3, 0.7]] * (40 - count), dtype=torch.float64).log(),
            labels=labels,
        )
        for name, count in right.items()
        for seed in (0, 1, 2)
    ]
    block = Block(model="m", task="t", comparison=Comparison(task="t", rows=rows, resamples=200))
    (tally,) = tallies(Study(name="s", reference=ADAMW, blocks=[block]), metrics=["accuracy"])
    (judged,) = tally.judged
    assert judged.difference.low > 0
    assert judged.verdict == "unclear"


def test_a_paired_difference_over_seeds_is_that_of_the_seeds_values(comparison: Comparison) -> None:
    found = over_seeds(comparison.difference(IVON, ADAMW, metric="nll", split="other words").per_seed)
    pairs = zip(comparison.runs(IVON, "other words"), comparison.runs(ADAMW, "other words"), strict=True)
    values = [evaluate(a.log_probs, a.labels)["nll"] - evaluate(b.log_probs, b.labels)["nll"] for a, b in pairs]
    assert found == over_seeds(values)


# Each seed's own interval, and rows of each seed's own ----------------------------------------------------------


def test_each_seeds_interval_is_what_compare_says_of_it(comparison: Comparison) -> None:
    for metric in shown_metrics():
        difference = comparison.difference(IVON, ADAMW, metric=metric, split=SPLIT)
        assert len(difference.intervals) == 2
        for k, (low, high) in enumerate(difference.intervals):
            one, two = comparison.runs(IVON, SPLIT)[k], comparison.runs(ADAMW, SPLIT)[k]
            expected = compare(one.log_probs, two.log_probs, one.labels, resamples=200)[metric]
            assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert comparison.difference(ADAMW, IVON, metric="nll", split=SPLIT).intervals == ()


def own_rows(names: Sequence[str] = (ADAMW, SCALED, IVON), num_examples: int = 120) -> list[Row]:
    """Each seed has the examples of another split, so that labels differ."""
    rows = made_up_rows(num_examples=num_examples)
    place = {21: "test", 42: "other words"}
    return [replace(row, split=SPLIT) for row in rows if row.split == place[row.seed] and row.method in names]


def test_seeds_may_have_examples_of_their_own() -> None:
    comparison = Comparison(task="t", rows=own_rows(), resamples=2000)
    assert comparison.own_examples(SPLIT)
    assert comparison.describe(SPLIT) == "test: 120 examples of each seed's own, 2 seeds"
    difference = comparison.difference(IVON, ADAMW, metric="nll", split=SPLIT)
    # Two independent test sets: the variance of the mean difference is a quarter of the sum of the two variances.
    variances = []
    for one, two in zip(comparison.runs(IVON, SPLIT), comparison.runs(ADAMW, SPLIT), strict=True):
        index = torch.arange(120)
        losses = [-row.examples.log_probs[index, row.labels] for row in (one, two)]
        variances.append(float((losses[0] - losses[1]).var() / 120))
    half = 1.96 * math.sqrt(sum(variances)) / 2
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.08)
    # On shared resamples it would be another width: that of the mean of both seeds' losses row by row.
    assert difference.value == pytest.approx(sum(difference.per_seed) / 2)


def test_shared_examples_are_told_by_their_names_too() -> None:
    rows = [row for row in made_up_rows() if row.split == SPLIT]
    named = [
        replace(row, ids=tuple(f"{row.seed if own else ''}-{i}" for i in range(120))) for own in (0, 1) for row in rows
    ]
    shared, own = (
        Comparison(task="t", rows=named[:6], resamples=200),
        Comparison(task="t", rows=named[6:], resamples=200),
    )
    assert (shared.own_examples(SPLIT), own.own_examples(SPLIT)) == (False, True)
    widths = [d.high - d.low for d in (c.difference(IVON, ADAMW, metric="nll", split=SPLIT) for c in (shared, own))]
    assert widths[0] != widths[1]
    with pytest.raises(ValueError, match="or its ids are not"):
        Comparison(task="t", rows=[replace(named[0], ids=named[0].ids[::-1]), *named[1:6]])


def test_each_seed_must_have_as_many_examples() -> None:
    rows = own_rows()
    short = [
        row if row.seed == 21 else replace(row, log_probs=row.log_probs[:100], labels=row.labels[:100]) for row in rows
    ]
    with pytest.raises(
        ValueError, match="has 120 examples for seed 21 and 100 for seed 42; each seed must have as many"
    ):
        Comparison(task="t", rows=short)


def test_within_a_seed_all_methods_have_the_same_examples() -> None:
    rows = own_rows()
    with pytest.raises(ValueError, match=r"'IVON, 10 samples', seed 42: its labels"):
        Comparison(
            task="t",
            rows=[
                replace(row, labels=row.labels.flip(0)) if row.method == IVON and row.seed == 42 else row
                for row in rows
            ],
        )


# Wins, ties and losses -------------------------------------------------------------------------------------------


def study_of(*comparisons: Comparison | None, reference: str = ADAMW) -> Study:
    blocks = [Block(model="m", task=f"task-{i}", comparison=comparison) for i, comparison in enumerate(comparisons)]
    return Study(name="s", reference=reference, blocks=blocks)


def tally_of(found: Sequence[Tally], method: str, metric: str) -> Tally:
    return next(one for one in found if (one.method, one.metric) == (method, metric))


def graded(gain: float) -> Comparison:
    """Three seeds whose right answers are more probable under IVON by about the gain."""
    base = torch.linspace(0.3, 0.7, 60, dtype=torch.float64)

    def row(method: str, seed: int, right: torch.Tensor) -> Row:
        log_probs = torch.stack([right, 1 - right], dim=-1).log()
        return Row(
            method=method, seed=seed, split=SPLIT, log_probs=log_probs, labels=torch.zeros(60, dtype=torch.int64)
        )

    seeds = range(3)
    rows = [row(ADAMW, s, base) for s in seeds] + [row(IVON, s, base + gain * (1 + 0.05 * s)) for s in seeds]
    return Comparison(task="t", rows=rows, resamples=100)


def test_verdicts_are_counted_over_blocks_and_never_averaged(comparison: Comparison) -> None:
    found = tallies(study_of(graded(0.1), graded(-0.1), None, graded(0.1)))
    nll = tally_of(found, IVON, "nll")
    assert [one.verdict for one in nll.judged] == ["better", "worse", "better"]
    assert [one.task for one in nll.judged] == ["task-0", "task-1", "task-3"]
    assert (nll.count("better"), nll.count("unclear"), nll.count("worse")) == (2, 0, 1)
    assert nll.in_words == "2 better, 0 unclear, 1 worse"
    found = tallies(study_of(comparison, comparison))
    assert tally_of(found, SCALED, "accuracy").in_words == "2 equal"  # a temperature changes no answer
    assert {one.method for one in found} == {IVON, SCALED}


def test_each_judgement_comes_with_the_intervals_that_decide_it(comparison: Comparison) -> None:
    one = tally_of(tallies(study_of(comparison)), IVON, "nll").judged[0]
    assert one.difference == comparison.difference(IVON, ADAMW, metric="nll", split=SPLIT)
    assert one.verdict == over_seeds(one.difference.per_seed).verdict(
        METRICS["nll"], (one.difference.low, one.difference.high)
    )


def test_two_seeds_rarely_say_anything_by_themselves(comparison: Comparison) -> None:
    # t(1; .975) = 12.7: a difference must be 6 times as large as the seeds' distance to be clear.
    tally = tally_of(tallies(study_of(comparison)), IVON, "accuracy")
    low, high = sorted(tally.judged[0].difference.per_seed)
    wide = abs(low + high) / 2 < 12.706204736 * (high - low) / 2
    assert wide
    assert tally.count("unclear") == 1


def test_one_seed_is_neither_better_nor_worse(comparison: Comparison) -> None:
    alone = Comparison(task="t", rows=[row for row in comparison.rows if row.seed == 21], resamples=200)
    tally = tally_of(tallies(study_of(alone)), IVON, "nll")
    assert tally.judged[0].difference.high < 0
    assert tally.in_words == "1 one seed"


def test_blocks_without_the_split_or_a_reference_are_left_out(comparison: Comparison) -> None:
    alone = Comparison(task="t", rows=comparison.rows, reference=None, resamples=200)
    assert tallies(study_of(alone, None)) == ()
    assert tallies(study_of(comparison), split="dev") == ()
    with pytest.raises(ValueError, match="there is no metric 'f1'"):
        tallies(study_of(comparison), metrics=["f1"])


# Frontiers ---------------------------------------------------------------------------------------------------------


def test_a_frontiers_places_in_order_with_their_seeds() -> None:
    def point(label: str, seed: int, value: float | None, nll: float) -> FrontierPoint:
        return FrontierPoint(label=label, seed=seed, value=value, metrics={"nll": nll})

    points = [
        point("AdamW", 0, None, 0.9),
        *(point("IVON", seed, value, value + 0.1 * seed) for seed in (0, 1, 2) for value in (4.0, 0.0, 1.0)),
        point("AdamW", 1, None, 0.7),
    ]
    found = frontier_means(Frontier(over="temperature", split=SPLIT, points=points), metrics=["nll"])
    assert [(one.label, one.value) for one in found] == [("IVON", 0.0), ("IVON", 1.0), ("IVON", 4.0), ("AdamW", None)]
    assert [one.metrics["nll"].mean for one in found] == pytest.approx([0.1, 1.1, 4.1, 0.8])
    assert [one.metrics["nll"].seeds for one in found] == [3, 3, 3, 2]
    assert found[0].metrics["nll"].se == pytest.approx(0.1 / math.sqrt(3))
