"""Costs: the cheapest answer against a loop over all, Chow's rule, and edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from varlora.metrics.costs import Costs, cost_of_rules

CLASSES = ("a", "b", "c")


def calibrated(rows: int, *, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities, and labels drawn by them."""
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    return probs, torch.multinomial(probs, 1, generator=generator).squeeze(1)


def test_the_answer_and_abstaining_are_those_of_a_loop() -> None:
    probs, _ = calibrated(200)
    matrix = [[0.1, 5, 2], [1, 0, 30], [4, 0.5, 0.2]]
    costs = Costs.of(CLASSES, wrong=matrix, abstain={"a": 1, "*": 0.4})
    answers, expected = costs.cheapest(probs)
    kept = costs.answered(probs)
    for n, row in enumerate(probs.tolist()):
        by_answer = [sum(p * matrix[right][answer] for right, p in enumerate(row)) for answer in range(3)]
        assert int(answers[n]) == by_answer.index(min(by_answer))
        assert float(expected[n]) == pytest.approx(min(by_answer))
        assert bool(kept[n]) is (min(by_answer) <= row[0] * 1 + (row[1] + row[2]) * 0.4)
    assert 0 < int(kept.sum()) < 200
    assert not torch.equal(answers, probs.argmax(1))


def test_one_cost_for_every_mistake_is_chows_rule() -> None:
    probs, _ = calibrated(500)
    costs = Costs.of(CLASSES, wrong=10, abstain=3)
    assert torch.equal(costs.cheapest(probs)[0], probs.argmax(1))
    assert torch.equal(costs.answered(probs), probs.amax(1) >= 0.7)


def test_no_rule_is_cheaper_where_probabilities_are_calibrated_and_costs_are_as_expected() -> None:
    probs, labels = calibrated(5000)
    costs = Costs.of(CLASSES, wrong={"a": {"b": 8, "c": 1}, "b": 2, "c": {"a": 1, "*": 4}}, abstain=0.5)
    least, *others = cost_of_rules(costs, probs, labels)
    assert [rule.rule for rule in (least, *others)] == [
        "least expected cost",
        "always the cheapest answer",
        "always the likeliest answer",
        "never an answer",
    ]
    for rule in (least, *others):
        assert rule.low <= rule.measured <= rule.high
        assert rule.low <= rule.expected <= rule.high
        assert rule.expected >= least.expected
    assert all(rule.low > least.high for rule in others)  # by far more than noise


def test_the_measured_cost_is_within_its_interval_over_draws_of_the_rows() -> None:
    """150 draws of 60 rows; the true cost of the rule by 100 000 others."""
    costs = Costs.of(CLASSES, wrong=10, abstain=1)
    probs, labels = calibrated(100_000, seed=1)
    true = float(costs.incurred(costs.cheapest(probs)[0], labels, costs.answered(probs)).mean())
    missed = 0
    for seed in range(150):
        rule = cost_of_rules(costs, *calibrated(60, seed=seed + 2))[0]
        missed += not rule.low <= true <= rule.high
    assert missed / 150 <= 0.104


def test_edges() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    free = Costs.of(CLASSES, wrong=0, abstain=0)
    answers, expected = free.cheapest(probs)
    assert (answers.tolist(), expected.tolist()) == ([0, 1, 0], [0, 0, 0])  # the likeliest of equally cheap ones
    assert bool(free.answered(probs).all())  # abstaining is not cheaper
    always = Costs.of(CLASSES, wrong=1)
    assert bool(always.answered(probs).all())
    assert [rule.rule for rule in cost_of_rules(always, probs[:1], torch.tensor([0]))] == [
        "always the cheapest answer",
        "always the likeliest answer",
    ]
    # A choice that is not offered is never the answer, however cheap.
    cheap = Costs.of(CLASSES, wrong=[[0, 9, 0], [9, 0, 0], [9, 9, 0]])
    assert cheap.cheapest(probs)[0].tolist() == [0, 1, 2]
    one_row = cost_of_rules(Costs.of(CLASSES, wrong=1, abstain=0.2), probs[2:], torch.tensor([2]))[0]
    assert (one_row.share_answered, one_row.measured, one_row.low, one_row.high) == (0.0, 0.2, 0.0, 1.0)
    with pytest.raises(ValueError, match="nothing says what that costs"):
        always.incurred(torch.tensor([0]), torch.tensor([1]), torch.tensor([False]))
    for bad in ([[0.5, 0.5]], [[0.25] * 4]):
        with pytest.raises(ValueError, match="costs for 3 classes"):
            always.cheapest(torch.tensor(bad))


def test_ties_by_rounding_are_ties() -> None:
    """With one cost for all mistakes the cheapest answer is the likeliest, whatever rounds."""
    costs = Costs.of(CLASSES, wrong=0.3)
    for row in itertools.permutations([0.1, 0.2, 0.7]):
        probs = torch.tensor([row], dtype=torch.float64)
        assert int(costs.cheapest(probs)[0]) == row.index(0.7)
    even = torch.full((1, 7), 1 / 7, dtype=torch.float64)
    assert int(Costs.of(tuple("abcdefg"), wrong=0.3).cheapest(even)[0]) == 0


@pytest.mark.parametrize(
    ("wrong", "abstain", "message"),
    [
        (-1, None, "a cost is -1"),
        (math.nan, None, "a cost is nan"),
        (1, math.inf, "a cost is inf"),
        ({"a": 1}, None, "b, c missing"),
        ({"a": 1, "d": 2, "*": 1}, None, "there is no class 'd'"),
        ({"a": {"b": 1}, "*": 1}, None, "where 'a' is right: c missing"),
        (1, {"a": 1}, "the cost of abstaining: b, c missing"),
        ([[0, 1], [1, 0]], None, "costs for 2 classes, and 3 classes"),
        ([[0, 1, 2], [1, 0], [1, 1, 0]], None, "no square"),
        ({"a": "much", "*": 1}, None, "a cost is 'much'"),
        ({"a": True, "*": 1}, None, "a cost is True"),
        ({"a": {"a": 2, "*": 1}, "*": 1}, None, "a right answer costs nothing, unless"),
    ],
)
def test_misuse(wrong: Any, abstain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Costs.of(CLASSES, wrong=wrong, abstain=abstain)
